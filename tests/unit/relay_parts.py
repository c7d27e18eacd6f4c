"""Helpers of the relay's tests: publications, and a broker that follows a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from sidestream.broker.protocol import Generation, Publication
from sidestream.job.reference import direct_reference, row_reference

DATABASE = b"database"
UUID_1 = UUID(int=1)


def row(row_id: int) -> Publication:
    return Publication(row_reference(DATABASE, row_id, "a", None).pack(), "lane")


def direct(uuid: UUID = UUID_1) -> Publication:
    return Publication(direct_reference(uuid, "a", None).pack(), "lane", 0, b"signed")


class ScriptedBroker:
    """Follows the test's script: answers, fails, or hangs until released."""

    def __init__(self) -> None:
        self.published: list[list[Publication]] = []
        self.errors: list[Exception] = []
        self.error: Exception | None = None
        self.number = 1
        self.begun = 0
        self.looks = 0
        self.hang: threading.Event | None = None
        self.closed = threading.Event()

    def _answer(self) -> None:
        if self.hang is not None:
            self.hang.wait(60)
        if self.errors:
            raise self.errors.pop(0)
        if self.error is not None:
            raise self.error

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return Generation(self.number, "run", frozenset())

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        self.begun += 1
        self.number = 1
        return self.generation()

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        assert not force
        self._answer()
        self.published.append(list(jobs))
        return len(jobs)

    def close(self) -> None:
        self.closed.set()

    @property
    def all(self) -> list[Publication]:
        return [publication for chunk in self.published for publication in chunk]


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        threading.Event().wait(0.002)


class QuickBroker(ScriptedBroker):
    """Also publishes in the caller's thread; ``quick`` is the result: True, False, or an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.quick: bool | BaseException = True
        self.readied = 0
        self.ready_error: Exception | None = None
        #: The thread's name and the publications of each such call.
        self.at_once: list[tuple[str, list[Publication]]] = []

    def get_ready(self) -> None:
        self.readied += 1
        if self.ready_error is not None:
            raise self.ready_error

    def publish_at_once(self, jobs: Sequence[Publication], seconds: float) -> bool:
        self.at_once.append((threading.current_thread().name, list(jobs)))
        if self.hang is not None:
            self.hang.wait(60)
        if isinstance(self.quick, BaseException):
            raise self.quick
        return self.quick
