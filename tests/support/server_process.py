"""Run one server process of a test in its own folder, and kill, freeze or restart it."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

import sidestream.process
from sidestream.process import Account, account, die_with_parent, reaches

DEADLINE = 60.0
"""Longest time, in seconds, of a start or a stop on a busy machine."""
_PORTS = range(20_000, 32_000)  # below the kernel's ephemeral range: no outgoing connection takes one in a restart
_PREFIX = "sidestream-"


class ServerFailed(Exception):
    """A test server did not start or stop."""


class Server:
    """One server process in one folder: the common part of PostgreSQL, Redis and Odoo."""

    #: Part of the names of its temporary folders.
    kind: ClassVar[str]
    #: The users that root tries, in this order.
    users: ClassVar[tuple[str, ...]] = ("nobody",)
    #: The signal that it receives when this process dies.
    death_signal: ClassVar[int] = signal.SIGKILL
    #: The signal that stops it cleanly.
    stop_signal: ClassVar[int] = signal.SIGTERM

    def __init__(self, folder: Path | None = None) -> None:
        self.user = unprivileged(self.users)
        self._temporary = folder is None
        if folder is None:
            sweep(self.kind)
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{self.kind}-{os.getpid()}-"))
            folder.chmod(0o755)  # the socket inside is for clients of any user
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / f"{self.kind}.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.give(folder)

    @property
    def pid(self) -> int:
        """Return its process id; raise :class:`ServerFailed` if it is not running."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Return whether the server process exists, also if it is frozen."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return when it answers. A restart keeps the port."""
        if self.alive:
            return
        for _ in range(5):
            first = self.port == 0
            self.port = self.port or free_port()
            if self._start_once():
                return
            if not first:
                break
            self.port = 0  # another process took it before the server could bind
        raise ServerFailed(f"{self.kind} did not start on port {self.port}; its log ends with: {self._last_lines()}")

    def stop(self) -> None:
        """Stop it cleanly and return when it has ended."""
        if not self.alive:
            return
        self.thaw()
        process = self._running()
        process.send_signal(self.stop_signal)
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{self.kind} did not stop in {DEADLINE:.0f} s: {self._last_lines()}") from None

    def kill(self) -> None:
        """Kill it and the processes that it started, and return when all have ended."""
        if not self.alive:
            return
        own = self._running()
        family = self._stop_family()
        for process in family:
            _signal(process, signal.SIGKILL)
        own.wait(DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while any(_runs(process) for process in family):
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.kind} was killed but some of its processes did not end.")
            time.sleep(0.002)  # they are not children of this process, so no signal reports their end

    def restart(self) -> None:
        """Stop cleanly, then start on the same port with the same contents."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop it and its processes with SIGSTOP: connections stay open without answers."""
        self._stop_family()

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        for process in self._family():
            _signal(process, signal.SIGCONT)

    def mend(self) -> None:
        """Make it run and answer again, whatever a test did to it."""
        if self.alive:
            self.thaw()
        else:
            self.start()

    def close(self) -> None:
        """Kill it, and remove its folder if that is a temporary one."""
        self.kill()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def command(self) -> Sequence[str]:
        """Return the command that runs the server in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the additional environment variables of the server."""
        return {}

    def ready(self) -> bool:
        """Return whether the server answers."""
        raise NotImplementedError

    def give(self, path: Path) -> None:
        """Change the owner of ``path`` to the server's user."""
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)

    def run(self, *command: str) -> None:
        """Run a program of the server as the server's user."""
        done = _spawn(lambda: popen(command, self.user, self.folder, output=subprocess.PIPE))
        output, _ = done.communicate(timeout=DEADLINE)
        if done.returncode:
            raise ServerFailed(f"{command[0]} failed with exit code {done.returncode}: {output.decode()[-400:]}")

    def _start_once(self) -> bool:
        self._give_contents()
        with self.log.open("ab") as log:
            self._process = _spawn(
                lambda: popen(
                    self.command(),
                    self.user,
                    self.folder,
                    output=log.fileno(),
                    environment=self.environment(),
                    death_signal=self.death_signal,
                )
            )
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self.ready():
                return True
            try:
                self._process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            return False
        self.kill()
        return False

    def _give_contents(self) -> None:
        """Give files that a test put here, such as an older dump, to the server's user."""
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                if self.user is not None and path.lstat().st_uid != self.user.uid:
                    self.give(path)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"{self.kind} is not running; call start() first.")
        return self._process

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._running().pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _stop_family(self) -> list[psutil.Process]:
        _signal(psutil.Process(self._running().pid), signal.SIGSTOP)  # first, so that it starts no more children
        family = self._family()
        for process in family[1:]:
            _signal(process, signal.SIGSTOP)
        return family

    def _last_lines(self) -> str:
        return self.log.read_text(errors="replace")[-400:].strip() if self.log.exists() else "(no log)"


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1 that no outgoing connection receives."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerFailed(f"No free port was found between {_PORTS.start} and {_PORTS.stop}; stop some servers.")


def popen(
    command: Sequence[str],
    user: Account | None,
    folder: Path,
    *,
    output: int,
    environment: Mapping[str, str] | None = None,
    death_signal: int = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a new session; it gets ``death_signal`` when this process dies."""
    parent = os.getpid()
    return subprocess.Popen(
        command,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else user.groups,
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent, death_signal),  # after the change of user, which would clear it
    )


def unprivileged(names: Sequence[str]) -> Account | None:
    """Return the first account of ``names`` that exists if this process is root, else None."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return account(next(name for name in names if name in known))


def worker_user() -> str:
    """Return SIDESTREAM_USER for workers that root starts: "nobody", or else "none".

    It is "none" if "nobody" cannot read the code, for example in a private folder, where a worker refuses to start.
    """
    nobody = account("nobody")
    code = (Path(sidestream.process.__file__).parent, Path(sys.prefix))
    return nobody.name if all(reaches(nobody, path) for path in code) else "none"


def sweep(kind: str) -> None:
    """Remove the folders of killed test processes, whose names contain their pids.

    Processes that they left running there are killed first, because they would disturb measurements.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{kind}-*-*"):
        pid = left.name.removeprefix(f"{_PREFIX}{kind}-").partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            for process in _below(left):
                _signal(process, signal.SIGKILL)
            shutil.rmtree(left, ignore_errors=True)


def _below(folder: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is ``folder`` or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            where = Path(process.cwd())
        except (psutil.Error, OSError):
            continue  # it has ended, or belongs to another user
        if where == folder or folder in where.parents:
            found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
        process.send_signal(signum)


_spawner: ThreadPoolExecutor | None = None


def _spawn(make: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Fork from a permanent thread, because a parent-death signal follows the forking *thread*."""
    global _spawner
    if threading.current_thread() is threading.main_thread():
        return make()
    if _spawner is None:
        _spawner = ThreadPoolExecutor(1, thread_name_prefix="sidestream-test-servers")
    return _spawner.submit(make).result()


def _forget_spawner() -> None:
    global _spawner
    _spawner = None  # threads do not survive a fork


os.register_at_fork(after_in_child=_forget_spawner)
