"""The harness of the crash points: learns which process stopped where, and resumes those that may live."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tests.chaos import processes


class Hit(NamedTuple):
    """A process that stands still at a crash point."""

    point: str
    pid: int


class Listener:
    """A datagram socket that a thread empties at once, so that no sender ever waits for us."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)  # workers run as another user
        self._thread = threading.Thread(target=self._serve, name=f"listen-{path.name}", daemon=True)
        self._thread.start()

    def heard(self, message: str) -> None:
        """Take one message, in the thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop listening."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        self.path.unlink()

    def _serve(self) -> None:
        while message := self._socket.recv(512):
            self.heard(message.decode())


class Harness(Listener):
    """Answers every hit of a crash point: woken at once, except for the one that :meth:`next_hit` waits for."""

    def __init__(self, path: Path) -> None:
        #: How often any process stopped at a point.
        self.hits = 0
        self._wanted: queue.SimpleQueue[Hit] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._armed = False
        super().__init__(path)

    def next_hit(self, patience: float) -> Hit | None:
        """Return the next process that stops (it stays stopped), or None after ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while True:
            with self._lock:
                self._armed = True
            try:
                hit = self._wanted.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                with self._lock:
                    self._armed = False
                if self._wanted.empty():  # else it came between the end of our patience and the lock
                    return None
                hit = self._wanted.get()
            if processes.alive(hit.pid):  # else its last words, from before we killed it
                return hit

    def heard(self, message: str) -> None:
        """Pass the hit to a waiter, or resume the process if there is none."""
        name, pid = message.split()
        hit = Hit(name, int(pid))
        self.hits += 1
        with self._lock:
            taken, self._armed = self._armed, False
            if taken:
                self._wanted.put(hit)
        if not taken:
            processes.resume(hit.pid)


class Events(Listener):
    """Lines that actions send while they run (see :func:`tests.chaos.app.tell`)."""

    def __init__(self, path: Path) -> None:
        self._lines: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        super().__init__(path)

    def next(self, patience: float, *wanted: str) -> list[str]:
        """Return the words of the next line that begins with ``wanted``; raise TimeoutError after ``patience`` s."""
        deadline = time.monotonic() + patience
        while True:
            try:
                words = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"No event {' '.join(wanted)!r} came within {patience:g} s.") from None
            if words[: len(wanted)] == list(wanted):
                return words

    def drain(self) -> list[list[str]]:
        """Return the lines that are there, without waiting."""
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return found

    def heard(self, message: str) -> None:
        """Keep the line."""
        self._lines.put(message.split())
