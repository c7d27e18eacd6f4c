"""Let one worker do what each of them could do, as long as it does it.

Without this, fifty workers would read the same rows every second. Nothing rests on it but effort: a worker that falls
silent loses its turn a moment later, one that does not reach PostgreSQL gives it back, and two workers that do the same
step at once do no harm.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from sidestream.errors import BrokerError, StoreError
from sidestream.maintenance.task import MaintenanceTask

SLACK = 1.0
"""Seconds beside two of a task's pauses for which a turn is kept for the worker that had it last: steps take time."""


class Turns(Protocol):
    """Where turns are kept: see :class:`~sidestream.broker.redis.broker.RedisBroker`."""

    def take_turn(self, task: str, worker: str, seconds: float) -> bool:
        """Return whether the task is the worker's now, and for so long nobody else's."""
        ...

    def give_turn_back(self, task: str, worker: str) -> None:
        """Let another worker take it at once."""
        ...


class Turn:
    """One worker's claim to one task."""

    def __init__(self, turns: Turns, task: str, worker: str, every: float) -> None:
        """Take nothing yet; ``every``: the task's seconds between two steps."""
        self._turns = turns
        self._task = task
        self._worker = worker
        self._seconds = 2 * every + SLACK

    def take(self) -> bool:
        """Return whether the task is ours; it is when nobody can be asked."""
        try:
            return self._turns.take_turn(self._task, self._worker, self._seconds)
        except BrokerError:
            return True  # the step meets it as well, and says so

    def give_back(self) -> None:
        """Let another worker try at once; raises a :class:`~sidestream.errors.BrokerError` in an outage."""
        self._turns.give_turn_back(self._task, self._worker)


class InTurn:
    """A task whose steps one worker does for all that have the same task."""

    def __init__(self, task: MaintenanceTask, turn: Turn) -> None:
        """``turn`` is this worker's claim to ``task``."""
        self.name = task.name
        self.every = task.every
        self._task = task
        self._turn = turn

    def step(self) -> bool:
        """Do the step unless it is another worker's; see :class:`~sidestream.maintenance.task.MaintenanceTask`."""
        if not self._turn.take():
            return False
        try:
            return self._task.step()
        except StoreError:
            with contextlib.suppress(BrokerError):  # then it runs out
                self._turn.give_back()
            raise
