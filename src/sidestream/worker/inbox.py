"""What one thread tells another that takes it in lots."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue with one reader, which gathers entries: meanwhile, only an urgent entry wakes it.

    A thread's turn costs more than most entries do (a futex, the interpreter's lock handed over twice).
    """

    def __init__(self) -> None:
        self._entries: queue.SimpleQueue[tuple[T, bool]] = queue.SimpleQueue()
        #: One token for each urgent entry, put after it: what the reader waits for while he gathers.
        self._urgent: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, entry: T, *, urgent: bool) -> None:
        """Add an entry; an urgent one ends the gathering."""
        self._entries.put((entry, urgent))
        if urgent:
            self._urgent.put(None)

    def empty(self) -> bool:
        """Whether nothing lies in it."""
        return self._entries.empty()

    def take(self, patience: float | None, gather: Callable[[], float]) -> list[T]:
        """Return the entries in order; empty if none comes in ``patience`` seconds (None: no limit).

        The first entry ends the wait. Unless one is urgent, ``gather()`` seconds more are waited for others.
        """
        try:
            entry, urgent = self._entries.get(timeout=patience)
        except queue.Empty:
            return []
        taken = [entry]
        with suppress(queue.Empty):
            while True:  # first: the entries of these tokens are in the queue by now, or were taken before
                self._urgent.get_nowait()
        if not self._drain(taken) and not urgent:
            with suppress(queue.Empty):
                self._urgent.get(timeout=gather())
            self._drain(taken)
        return taken

    def _drain(self, taken: list[T]) -> bool:
        """Add what lies there to ``taken``; return whether one of it is urgent."""
        any_urgent = False
        try:
            while True:
                entry, urgent = self._entries.get_nowait()
                taken.append(entry)
                any_urgent = any_urgent or urgent
        except queue.Empty:
            return any_urgent
