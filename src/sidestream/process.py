"""Control a Linux process: user, parent-death signal, niceness, shared memory, OOM score."""

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
"""Seconds to retry setting a session's niceness while other processes set theirs."""
_PR_SET_PDEATHSIG = 1
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here, because nothing may be loaded between fork and exec


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, from the password database."""

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
    """Return the user with the id ``uid``; an unknown one has the id as its name."""
    try:
        return account(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Account(str(uid), uid, uid, (uid,))


def account(name: str) -> Account:
    """Return the user ``name``; raise SettingsError if there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise SettingsError(f"This machine has no user {name!r}; choose an existing unprivileged user.") from None
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(name, entry.pw_uid, entry.pw_gid, groups, Path(entry.pw_dir))


def reaches(who: Account, path: Path) -> bool:
    """Return whether ``who`` may reach and read ``path`` (and execute it, if anyone may).

    Checks mode bits (https://man7.org/linux/man-pages/man7/path_resolution.7.html), not access control lists.
    """
    path = path.resolve()
    try:
        status = path.stat()
    except OSError:
        return False  # it does not exist, or even this process may not read it
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
        return False  # it does not exist, or even this process may not read it


def _permits(who: Account, status: os.stat_result, wanted: int) -> bool:
    shift = 6 if status.st_uid == who.uid else 3 if status.st_gid in who.groups else 0
    return (status.st_mode >> shift) & wanted == wanted


def acting_as(who: Account | None, act: Callable[[], T]) -> T:
    """Call ``act`` as ``who``, in a child process unless that is the current user.

    This way root itself does not work in a user's folder, which may contain links to any place.

    Args:
        who: The user to become, or None for the current one; only root can become another user.
        act: Returns a JSON value; it may raise :class:`~sidestream.errors.SidestreamError` or ``OSError``.
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
    """Run the child of :func:`acting_as`."""
    try:
        signal.set_wakeup_fd(-1)  # this child's signals must not wake the parent's loop
        become(who)
        try:
            answer = {"value": act()}
        except SidestreamError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            named = None if error.filename is None else os.fspath(error.filename)
            answer = {"errno": error.errno, "message": error.strerror, "file": named}
        except Exception as error:  # noqa: BLE001  # the parent raises it
            answer = {"error": "SidestreamError", "message": f"{type(error).__name__}: {error}"}
        end.send(json.dumps(answer).encode())
    finally:
        os._exit(0)  # never return into the parent's code


def _answer_of(pid: int, end: socket.socket) -> dict[str, Any]:
    """Wait for the answer of the child ``pid``; raise if it ends without one."""
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
    """Open the folder ``path`` as root, without following links that other users can make.

    Creates missing folders: root creates them below its own folders (the last one for ``owner``), and a user below
    that user's folders.

    Raises:
        OSError: It cannot be opened or created, or its path contains a link of another user.
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
                _make_below(folder, name, owner if not rest else None)
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if found.st_uid != 0 or os.fstat(folder).st_uid != 0 or links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, "its path contains a link of another user", str(path))
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


def _make_below(folder: int, name: str, owner: Account | None) -> None:
    """Create the folder ``name``; with ``owner``, private to that user."""
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
    """Transfer the open folder and its contents to ``owner``, without following links.

    Works from the top down, so that the previous owner cannot change what comes next. Skips links, sockets and files
    with several names, which may belong to anybody.

    Args:
        folder: Descriptor of the folder.
        owner: The new owner.
        names: Tells which names directly below it to transfer.
    """
    os.fchown(folder, owner.uid, owner.gid)
    for name in filter(names, os.listdir(folder)):
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
                continue  # a link, a socket, or removed in the meantime
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
    """Become ``who`` permanently, as root.

    https://man7.org/linux/man-pages/man2/setuid.2.html: a root process that calls ``setuid`` changes its real,
    effective and saved ids, so this cannot be undone. It clears the parent-death signal; set that afterwards.
    """
    os.setgroups(who.groups)
    os.setgid(who.gid)
    os.setuid(who.uid)


def drop_privileges(user: str | None, data_dir: Path, *, required: bool = False) -> None:
    """Become ``user`` permanently if this process is root; do nothing with None.

    Args:
        user: The unprivileged user to become.
        required: Whether to raise if this process is neither root nor ``user``.
        data_dir: The user's data folder. It becomes the home of a user who has none, and is set as
            ``SIDESTREAM_DATA_DIR`` for child processes, which would otherwise look for it below that home.

    Raises:
        SettingsError: The user does not exist, is root itself, cannot read the code that this process runs, or is
            ``required`` and not this process's.
    """
    own = os.geteuid()
    if user is None or (own != 0 and not required):
        return
    who = account(user)
    if own not in (0, who.uid):
        raise SettingsError(
            f"A worker of the account {account_of(own).name!r} cannot become the user {user!r}; start it as that user "
            "or as root, or leave the setting user (SIDESTREAM_USER) out."
        )
    if own != 0:
        return
    if who.uid == 0:
        raise SettingsError(f"The user {user!r} is root; choose an unprivileged user.")
    for what, code in (
        ("Sidestream", Path(__file__).parent),
        ("this Python environment", Path(sys.prefix)),
        ("this Python", Path(sys.base_prefix)),  # the base of a virtual environment
        ("this Python", Path(sys.executable)),
        ("Python's standard library", Path(os.__file__)),
    ):
        if not reaches(who, code):
            raise SettingsError(
                f"The user {user!r}, which a worker started by root becomes, cannot read {what} in {code}. Install it "
                f"in a folder that this user can enter, such as /opt or /srv (not in root's home), or choose "
                "another user: SIDESTREAM_USER=NAME, or none to stay root."
            )
    roots = account_of(0).home
    become(who)
    home = os.environ.get("HOME")
    if home is None or Path(home) == roots or not os.access(home, os.X_OK):
        os.environ["HOME"] = str(who.home if os.access(who.home, os.W_OK | os.X_OK) else data_dir)
        for name in [name for name in os.environ if name.startswith("XDG_") and name.endswith(("_HOME", "_DIR"))]:
            del os.environ[name]  # folders of root's home, or root's runtime folder
    os.environ["USER"] = os.environ["LOGNAME"] = who.name
    os.environ["SIDESTREAM_DATA_DIR"] = str(data_dir)


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Let the kernel send ``signum`` to this process when its parent, ``parent``, ends.

    https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html: the "parent" is the *thread* that forked, so
    fork from a thread that lives as long as the process. A change of user clears the setting. If the parent ended
    before this call, this function sends the signal itself.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG, {signum}) failed: {os.strerror(code)}")
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def share_memory() -> None:
    """Prepare the memory of this process for sharing with forked children.

    Collects garbage, then freezes the rest, because the collector's marks would copy every page
    (https://docs.python.org/3/library/gc.html#gc.freeze), and returns freed memory to the kernel
    (https://man7.org/linux/man-pages/man3/malloc_trim.3.html, if the C library has it).
    """
    gc.collect()
    gc.freeze()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def set_nice(value: int) -> None:
    """Set the niceness of this process to ``value`` (-20 to 19, absolute).

    Raises:
        SettingsError: The kernel refused.

    https://man7.org/linux/man-pages/man2/setpriority.2.html
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except PermissionError:
        raise SettingsError(
            f"nice={value} needs privileges that this user does not have; choose a value of at least "
            f"{os.getpriority(os.PRIO_PROCESS, 0)}."
        ) from None


def set_session_nice(value: int) -> None:
    """Set the niceness of this session to ``value``, if the kernel schedules by session.

    With autogroups (enabled in Debian's kernel), niceness counts only within a session. Without this call, nice
    children would compete with a web server in another session as equals.
    https://man7.org/linux/man-pages/man7/sched.7.html (The autogroup feature)
    """
    deadline = time.monotonic() + AUTOGROUP_TIMEOUT
    while True:
        try:
            Path("/proc/self/autogroup").write_text(str(value))
        except BlockingIOError:
            # The kernel accepts one such change per 0.1 s from all users other than root.
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        except OSError:  # a kernel without autogroups
            return
        else:
            return


def use_idle_cpu_only() -> None:
    """Run this process and its children only while the other processes of the session are idle.

    A nice process keeps the processor for a few milliseconds when another process wakes up; this one yields it
    immediately. https://man7.org/linux/man-pages/man7/sched.7.html (SCHED_IDLE)
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def check_idle_cpu_only() -> None:
    """Raise SettingsError if :func:`use_idle_cpu_only` would fail in a child."""
    pid = os.fork()  # in a child, because an unprivileged process cannot undo it
    if pid == 0:
        try:
            use_idle_cpu_only()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise SettingsError("idle_cpu_only=true was refused by this system (SCHED_IDLE); remove it and use nice.")


def check_nice(value: int) -> None:
    """Raise SettingsError if setting the niceness ``value`` would fail in a child."""
    current = os.getpriority(os.PRIO_PROCESS, 0)
    if value < current:
        set_nice(value)
        set_nice(current)


def set_oom_score_adj(value: int) -> None:
    """Make the OOM killer prefer (up to 1000) or spare (down to -1000) this process.

    Only lowering the value needs privileges.
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
