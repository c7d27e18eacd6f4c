"""What a Linux process does to itself: user, parent's death, niceness, shared memory, rank before the OOM killer."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import pwd
import select
import signal
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sidestream import errors
from sidestream.errors import SettingsError, SidestreamError

T = TypeVar("T")

AUTOGROUP_TIMEOUT = 2.0
"""Seconds for which a session's niceness is tried while others change theirs."""
_PR_SET_PDEATHSIG = 1
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
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


def account_of(uid: int) -> Account:
    """Return the user with the number ``uid``, under its number as name when the password database has none."""
    try:
        return account(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Account(str(uid), uid, uid, (uid,))


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
    try:
        status = path.stat()
    except OSError:
        return False  # not even we can look at it, or it is not there
    if who.uid == 0:
        return True
    enter = stat.S_IXOTH if status.st_mode & 0o111 else 0
    return enters(who, path) and _permits(who, status, stat.S_IROTH | enter)


def enters(who: Account, path: Path) -> bool:
    """Return whether ``who`` may enter every folder above ``path``, by their mode bits."""
    if who.uid == 0:
        return True
    try:
        return all(_permits(who, folder.stat(), stat.S_IXOTH) for folder in path.resolve().parents)
    except OSError:
        return False  # not even we can look at it, or it is not there


def _permits(who: Account, status: os.stat_result, wanted: int) -> bool:
    shift = 6 if status.st_uid == who.uid else 3 if status.st_gid in who.groups else 0
    return (status.st_mode >> shift) & wanted == wanted


def acting_as(who: Account | None, act: Callable[[], T]) -> T:
    """Return what ``act`` returns, called by a child process that has become ``who`` if that is not our user.

    So root does nothing itself in a folder of a user, who may have put links there to anywhere. None calls it here.

    Args:
        who: The user to become; only root can become another one.
        act: Returns what JSON can express; it may raise :class:`~sidestream.errors.SidestreamError` or ``OSError``.
    """
    if who is None or who.uid == os.geteuid():
        return act()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _act_and_end(who, act, theirs)
        answer = _answer_of(pid, ours)
    if "value" in answer:
        value: T = answer["value"]
        return value
    if "errno" in answer:
        raise OSError(answer["errno"], answer["message"], answer["file"])
    raise getattr(errors, answer["error"], SidestreamError)(answer["message"])


def _act_and_end(who: Account, act: Callable[[], object], end: socket.socket) -> NoReturn:
    """Be the child of :func:`acting_as`."""
    try:
        signal.set_wakeup_fd(-1)  # the parent's loop hears nothing of ours
        become(who)
        try:
            answer = {"value": act()}
        except SidestreamError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            named = None if error.filename is None else os.fspath(error.filename)
            answer = {"errno": error.errno, "message": error.strerror, "file": named}
        except Exception as error:  # noqa: BLE001  # told to the parent, which raises it
            answer = {"error": "SidestreamError", "message": f"{type(error).__name__}: {error}"}
        end.send(json.dumps(answer).encode())
    finally:
        os._exit(0)  # never back into the parent's code


def _answer_of(pid: int, end: socket.socket) -> dict[str, Any]:
    """Wait for the answer of the child ``pid``, or for its death without one."""
    died = os.pidfd_open(pid)
    try:
        wait = select.poll()
        wait.register(end, select.POLLIN)
        wait.register(died, select.POLLIN)
        wait.poll()
        packed = end.recv(1 << 18, socket.MSG_DONTWAIT)
    except BlockingIOError:
        raise SidestreamError("The process that works for root as another user ended without an answer.") from None
    finally:
        os.close(died)
        with suppress(ChildProcessError):  # where the program ignores SIGCHLD, the kernel has reaped it
            os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(packed)
    return found


def open_folder(path: Path, owner: Account) -> int:
    """Return a descriptor of the folder ``path``, as root, which follows no link that another user could have made.

    What is missing is made: below a folder of root's by root, the last one for ``owner``; below a folder of a user by
    that user.

    Raises:
        OSError: It cannot be acquired or made, or a link of a user leads there.
    """
    rest = deque(Path(os.path.normpath(path)).parts[1:])
    links = 0
    folder = os.open("/", _FOLDER)
    try:
        while rest:
            name = rest.popleft()
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                _make_below(folder, name, owner if not rest else None, path)
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if found.st_uid != 0 or os.fstat(folder).st_uid != 0 or links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, "a link of another user leads there", str(path))
                target = Path(os.readlink(name, dir_fd=folder))
                rest.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
                below = os.open("/", _FOLDER) if target.is_absolute() else os.dup(folder)
            else:
                below = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        return folder
    except BaseException as error:
        os.close(folder)
        if isinstance(error, OSError) and error.filename != str(path):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _make_below(folder: int, name: str, owner: Account | None, path: Path) -> None:
    """Make the folder ``name``: private and for ``owner`` if that is given."""
    holder = os.fstat(folder).st_uid
    mode = 0o755 if owner is None else 0o700

    def make() -> None:
        os.mkdir(name, mode, dir_fd=folder)

    with suppress(FileExistsError):  # another process was first
        if holder != 0:
            acting_as(account_of(holder), make)
            return
        make()
        if owner is not None:
            os.chown(name, owner.uid, owner.gid, dir_fd=folder, follow_symlinks=False)


def hand_over(folder: int, owner: Account, names: Callable[[str], bool] = lambda name: True) -> None:
    """Give the open folder and all that is below it to ``owner``, as root, following no link.

    From the top down: whoever had it before cannot change any more what is looked at next. Left alone are links,
    sockets, and files that have another name, which may be anybody's.

    Args:
        folder: Descriptor of the folder.
        owner: Who gets it.
        names: Which names directly below it are ours to give.
    """
    os.fchown(folder, owner.uid, owner.gid)
    for name in filter(names, os.listdir(folder)):
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
                continue  # a link, a socket, or gone meanwhile
            raise
        try:
            found = os.fstat(handle)
            if stat.S_ISDIR(found.st_mode):
                hand_over(handle, owner)
            elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                os.fchown(handle, owner.uid, owner.gid)
        finally:
            os.close(handle)


def become(who: Account) -> None:
    """Become ``who`` for good, as root.

    https://man7.org/linux/man-pages/man2/setuid.2.html: a root process that calls ``setuid`` changes its real,
    effective and saved ids, so there is no way back. A parent-death signal is cleared by it: set that afterwards.
    """
    os.setgroups(who.groups)
    os.setgid(who.gid)
    os.setuid(who.uid)


def drop_privileges(user: str | None, data_dir: Path) -> None:
    """Become ``user`` for good if we are root, with that user's environment; otherwise, or with None, change nothing.

    Args:
        user: The unprivileged user to become.
        data_dir: The user's data folder. It is the home of a user who has none, and the programs that this process
            starts find it in ``SIDESTREAM_DATA_DIR``, as by themselves they would look below that home.

    Raises:
        SettingsError: The user does not exist, is root itself, or cannot read the code that it would go on running.
    """
    if user is None or os.geteuid() != 0:
        return
    who = account(user)
    if who.uid == 0:
        raise SettingsError(f"The user {user!r} is root; name an unprivileged user to drop to.")
    for what, code in (
        ("Sidestream", Path(__file__).parent),
        ("this Python environment", Path(sys.prefix)),
        ("this Python", Path(sys.base_prefix)),  # of a virtual environment: the one that it was made with
        ("this Python", Path(sys.executable)),
        ("Python's standard library", Path(os.__file__)),
    ):
        if not reaches(who, code):
            raise SettingsError(
                f"The user {user!r}, which a worker started by root becomes, cannot read {what} in {code}. Install it "
                f"in a folder that this user can enter, such as /opt or /srv (not in root's home), or name another "
                "user: SIDESTREAM_USER=NAME, or none to stay root."
            )
    roots = account_of(0).home
    become(who)
    home = os.environ.get("HOME")
    if home is None or Path(home) == roots or not os.access(home, os.X_OK):
        os.environ["HOME"] = str(who.home if os.access(who.home, os.W_OK | os.X_OK) else data_dir)
        for name in [name for name in os.environ if name.startswith("XDG_") and name.endswith(("_HOME", "_DIR"))]:
            del os.environ[name]  # they name folders of the same home, or the other user's runtime folder
    os.environ["USER"] = os.environ["LOGNAME"] = who.name
    os.environ["SIDESTREAM_DATA_DIR"] = str(data_dir)


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
    deadline = time.monotonic() + AUTOGROUP_TIMEOUT
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


def use_idle_cpu_only() -> None:
    """Run only while nothing else of our session wants the processor, and so will whatever we start.

    A process that is merely nice keeps the processor for a few milliseconds when somebody else wakes up; this one gives
    it up at once. https://man7.org/linux/man-pages/man7/sched.7.html (SCHED_IDLE)
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def check_idle_cpu_only() -> None:
    """Raise :class:`~sidestream.errors.SettingsError` when our children could not :func:`use_idle_cpu_only`."""
    pid = os.fork()  # tried by another process: an unprivileged one may not come back from it
    if pid == 0:
        try:
            use_idle_cpu_only()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SettingsError("idle_cpu_only=true was refused by this system (SCHED_IDLE); leave it out and use nice.")


def check_nice(value: int) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` when our children could not be given the niceness ``value``."""
    current = os.getpriority(os.PRIO_PROCESS, 0)
    if value < current:
        set_nice(value)
        set_nice(current)


def set_oom_score_adj(value: int) -> None:
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
