"""Programs that are restarted when they were killed, and two ways to start them: exec, or fork from a launcher."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from sidestream.process import die_with_parent
from tests.chaos import processes
from tests.support.server_process import popen, unprivileged, worker_user

ROOT = Path(__file__).resolve().parents[2]
USER = unprivileged(("nobody",)) if worker_user() == "nobody" else None
"""Who workers and producers run as: not root, where we are root and that user can read the code."""
REQUEST = 1 << 16


class Process(Protocol):
    """What we ask of a started process; :class:`subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Return None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raise subprocess.TimeoutExpired."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""
        ...


def execute(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start ``command`` as :data:`USER` in the project's folder; it dies with us."""
    with log.open("ab") as output:
        return popen(command, USER, ROOT, output=output.fileno(), environment=environment)


class Forked:
    """A process that the launcher forked and, asked to by ``reap``, waits for."""

    def __init__(self, pid: int, reap: Callable[[int], int]) -> None:
        self.pid = pid
        self._reap = reap
        self._pidfd = os.pidfd_open(pid)  # there until it is reaped
        self._code: int | None = None

    def poll(self) -> int | None:
        """See :class:`Process`."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """See :class:`Process`."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"forked {self.pid}", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        """See :class:`Process`."""
        if self._code is None:
            signal.pidfd_send_signal(self._pidfd, sig)

    def _ended(self, timeout: float | None) -> int | None:
        if self._code is None and select.select([self._pidfd], [], [], timeout)[0]:
            self._code = self._reap(self.pid)
            os.close(self._pidfd)
        return self._code


class Launcher:
    """Starts workers and producers by forking a process that imported all of theirs already.

    The code that runs is that of ``sidestream worker run`` from its entry point on; what is saved is most of a second
    of imports a start, of which ``make chaos`` makes thousands.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.launcher", str(theirs.fileno())],
                user=None if USER is None else USER.uid,
                group=None if USER is None else USER.gid,
                extra_groups=None if USER is None else USER.groups,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """Fork what ``command`` would execute: its last word says whether a worker or a producer."""
        log.touch()
        if USER is not None:
            os.chown(log, USER.uid, USER.gid)
        return Forked(self._ask([*command], dict(environment), str(log)), self._ask)

    def _ask(self, *request: object) -> int:
        """Send one request, a list of words or a single one, and return the number that answers it."""
        with self._lock:
            self._ours.send(json.dumps(request if len(request) > 1 else request[0]).encode())
            return int(self._ours.recv(REQUEST))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ours.close()
        self._process.kill()
        self._process.wait()


@dataclass
class Program:
    """One process that is restarted when it was killed."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    begin: Callable[[Sequence[str], Mapping[str, str], Path], Process] = execute
    process: Process | None = None
    #: Environment on top, for the next starts.
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Its pid, 0 when it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def start(self) -> None:
        """Start it unless it runs."""
        if not self.pid:
            self.process = self.begin(self.command, {**self.environment, **self.extra}, self.log)

    def tree(self) -> list[int]:
        """Return its processes, itself first."""
        return processes.tree(self.pid) if self.pid else []

    def terminate(self, patience: float) -> int | None:
        """Ask it to end and return its exit code; None when it had to be killed after ``patience`` seconds."""
        if self.process is None:
            return 0
        if self.pid:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """Kill it and everything below it."""
        processes.kill(*self.tree())
        self.reap()

    def reap(self) -> None:
        """Wait for the end of what was killed."""
        if self.process is not None:
            self.process.wait()
