"""What a Linux process does to itself: user, parent's death, niceness, shared memory, rank before the OOM killer."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sidestream.errors import SettingsError

AUTOGROUP_PATIENCE = 2.0
"""Seconds for which a session's niceness is tried while others change theirs."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be loaded between fork and exec


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, as the password database names it."""

    #: Login name.
    name: str
    #: Numeric user id.
    uid: int
    #: Numeric id of its first group.
    gid: int
    #: Every group it belongs to, the first one included.
    groups: tuple[int, ...]
    #: Its home, which need not exist.
    home: Path = Path("/nonexistent")


def account(name: str) -> Account:
    """Return the user ``name``; raise :class:`~sidestream.errors.SettingsError` when this machine has none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise SettingsError(f"This machine has no user {name!r}; name an existing unprivileged user instead.") from None
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_uid, entry.pw_gid, groups, Path(entry.pw_dir))


def reaches(who: Account, path: Path) -> bool:
    """Return whether ``who`` may enter every folder above ``path`` and read it (and execute it, where anybody may).

    Mode bits only (https://man7.org/linux/man-pages/man7/path_resolution.7.html); access control lists are not read.
    """
    path = path.resolve()
    if who.uid == 0:
        return path.exists()
    try:
        if not all(_permits(who, folder.stat(), stat.S_IXOTH) for folder in path.parents):
            return False
        status = path.stat()
    except OSError:
        return False  # not even we can look at it, or it is not there
    enter = stat.S_IXOTH if status.st_mode & 0o111 else 0
    return _permits(who, status, stat.S_IROTH | enter)


def _permits(who: Account, status: os.stat_result, wanted: int) -> bool:
    shift = 6 if status.st_uid == who.uid else 3 if status.st_gid in who.groups else 0
    return (status.st_mode >> shift) & wanted == wanted


def make_folder(path: Path, owner: Account | None) -> None:
    """Make ``path``, for its owner alone, and what is missing above it; as root, for ``owner``.

    Below a folder of the owner's root makes nothing itself, as the owner may have put a link there to anywhere.

    Raises:
        OSError: It cannot be made, or given to its owner.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if owner is None or os.geteuid() != 0:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    if not path.exists() and any(folder.exists() and folder.stat().st_uid == owner.uid for folder in path.parents):
        make = ["mkdir", "-p", "-m", "700", "--", str(path)]
        as_owner = {"user": owner.uid, "group": owner.gid, "extra_groups": owner.groups}
        done = subprocess.run(make, capture_output=True, text=True, check=False, **as_owner)  # type: ignore[call-overload]
        if done.returncode != 0:
            raise PermissionError(errno.EACCES, done.stderr.strip(), str(path))
        return
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    give(path, owner)


def give(path: Path, owner: Account, flags: int = os.O_RDONLY) -> None:
    """Give a file or folder to ``owner``, as root; a link is not followed. ``flags`` may make it.

    Raises:
        OSError: It is a link, is a file with another name besides this one, or cannot be opened.
    """
    if path.exists() and path.stat().st_uid == owner.uid:
        return
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_nlink != 1:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        os.fchown(handle, owner.uid, owner.gid)
    finally:
        os.close(handle)


def drop_privileges(user: str | None, *paths: Path) -> None:
    """Become ``user`` for good if we are root; otherwise, or with None, change nothing.

    Args:
        user: The unprivileged user to become.
        paths: Files and folders given to that user first (only these themselves, not what lies below them).

    Raises:
        SettingsError: The user does not exist, is root itself, or cannot read the code that it would go on running.

    https://man7.org/linux/man-pages/man2/setuid.2.html: a root process that calls ``setuid`` changes its real,
    effective and saved ids, so there is no way back. A parent-death signal is cleared by it: set that afterwards.
    """
    if user is None or os.geteuid() != 0:
        return
    who = account(user)
    if who.uid == 0:
        raise SettingsError(f"The user {user!r} is root; name an unprivileged user to drop to.")
    for code in (Path(__file__).parent, Path(sys.prefix)):
        if not reaches(who, code):
            raise SettingsError(
                f"The user {user!r} cannot read {code}, so it could not run the code there; "
                "install Sidestream in a folder that it can enter, or name another user."
            )
    for path in paths:
        os.chown(path, who.uid, who.gid, follow_symlinks=False)
    os.setgroups(who.groups)
    os.setgid(who.gid)
    os.setuid(who.uid)
    if os.environ.get("HOME") == pwd.getpwuid(0).pw_dir and who.home.is_dir():
        os.environ["HOME"] = str(who.home)  # what a program keeps there, Odoo its files among it, is the user's


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Ask the kernel to send us ``signum`` when our parent ends; ``parent`` is its pid, taken before the fork.

    https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html: the "parent" is the *thread* that forked, so
    fork from one that lives as long as the process; a change of user clears the setting. A parent that ended before
    this call would never be noticed: then the signal is sent here.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG, {signum}) failed: {os.strerror(code)}")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def share_memory() -> None:
    """Prepare our memory for being shared with the children that will be forked, as much of it as possible.

    Garbage is collected first, and what is left is never looked at by the collector again, whose marks would copy every
    page (https://docs.python.org/3/library/gc.html#gc.freeze); what the loading used and freed goes back to the kernel
    (https://man7.org/linux/man-pages/man3/malloc_trim.3.html, where the C library has it).
    """
    gc.collect()
    gc.freeze()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def set_nice(value: int) -> None:
    """Set our niceness to ``value`` (-20 to 19, not a difference).

    Raises:
        SettingsError: The kernel refused.

    https://man7.org/linux/man-pages/man2/setpriority.2.html
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except PermissionError:
        raise SettingsError(
            f"nice={value} needs rights that this user does not have; choose a value of at least "
            f"{os.getpriority(os.PRIO_PROCESS, 0)}."
        ) from None


def set_session_nice(value: int) -> None:
    """Give our session the niceness ``value`` where the kernel shares processors out by session.

    With autogroups (on in Debian's kernel) a process's niceness is compared within its session only: without this, nice
    children would take from a web server in another session as if they were not.
    https://man7.org/linux/man-pages/man7/sched.7.html (The autogroup feature)
    """
    deadline = time.monotonic() + AUTOGROUP_PATIENCE
    while True:
        try:
            Path("/proc/self/autogroup").write_text(str(value))
        except BlockingIOError:
            # The kernel takes one such change in 0.1 s from all who are not root: another came first.
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        except OSError:  # a kernel without autogroups: there is nothing to do
            return
        else:
            return


def use_only_idle_cpu() -> None:
    """Run only while nothing else of our session wants the processor, and so will whatever we start.

    A process that is merely nice keeps the processor for a few milliseconds when somebody else wakes up; this one gives
    it up at once. https://man7.org/linux/man-pages/man7/sched.7.html (SCHED_IDLE)
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def check_only_idle_cpu() -> None:
    """Raise :class:`~sidestream.errors.SettingsError` when our children could not :func:`use_only_idle_cpu`."""
    pid = os.fork()  # tried by another process: an unprivileged one may not come back from it
    if pid == 0:
        try:
            use_only_idle_cpu()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SettingsError("only_idle_cpu=true was refused by this system (SCHED_IDLE); leave it out and use nice.")


def check_nice(value: int) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` when our children could not be given the niceness ``value``."""
    current = os.getpriority(os.PRIO_PROCESS, 0)
    if value < current:
        set_nice(value)
        set_nice(current)


def oom_score_adj(value: int) -> None:
    """Make the OOM killer prefer (up to 1000) or spare (down to -1000) this process.

    Raising one's own value needs no rights, lowering it does.
    https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html

    Raises:
        SettingsError: The kernel refused the value.
    """
    try:
        Path("/proc/self/oom_score_adj").write_text(str(value))
    except OSError as error:
        raise SettingsError(
            f"oom_score_adj={value} was refused ({error.strerror}); expected -1000 to 1000, lowered only by root."
        ) from error
