"""Let one worker do what each of them could do, as long as it does it.

Without this, fifty workers would read the same rows every second. Nothing rests on it but effort: a worker that falls
silent loses its turn a moment later, one that does not reach PostgreSQL gives it back, and two workers that do the same
step at once do no harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from sidestream.errors import BrokerError, StoreError
from sidestream.maintenance.task import Keeper

SLACK = 1.0
"""Seconds beside two of a keeper's pauses for which a turn is kept for the worker that had it last: steps take time."""


class Turns(Protocol):
    """Where turns are kept: see :class:`~sidestream.broker.redis.broker.RedisBroker`."""

    def take_turn(self, task: str, consumer: str, seconds: float) -> bool:
        """Return whether the task is the consumer's now, and for so long nobody else's."""
        ...

    def give_turn_back(self, task: str, consumer: str) -> None:
        """Let somebody else have it at once."""
        ...


class Turn:
    """One consumer's claim to one task."""

    def __init__(self, turns: Turns, task: str, consumer: str, seconds: float) -> None:
        """Take nothing yet; a turn is kept for ``seconds``."""
        self._turns = turns
        self._task = task
        self._consumer = consumer
        self._seconds = seconds

    def take(self) -> bool:
        """Return whether the task is ours; it is when nobody can be asked."""
        try:
            return self._turns.take_turn(self._task, self._consumer, self._seconds)
        except BrokerError:
            return True  # the step meets it as well, and says so

    def give_back(self) -> None:
        """Let somebody else try at once; raises a :class:`~sidestream.errors.BrokerError` when nobody can be told."""
        self._turns.give_turn_back(self._task, self._consumer)


class InTurn:
    """A keeper whose steps one worker does for all that have the same task."""

    def __init__(self, keeper: Keeper, turn: Callable[[str, float], Turn]) -> None:
        """``turn`` makes the claim to the task of a name, kept for so many seconds."""
        self.name = keeper.name
        self.every = keeper.every
        self._keeper = keeper
        self._turn = turn(keeper.name, kept_for(keeper.every))

    def step(self) -> bool:
        """Do the step unless it is another worker's; see :class:`~sidestream.maintenance.task.Keeper`."""
        if not self._turn.take():
            return False
        try:
            return self._keeper.step()
        except StoreError:
            with contextlib.suppress(BrokerError):  # then it runs out
                self._turn.give_back()
            raise


def kept_for(every: float) -> float:
    """Return the seconds for which a turn is kept that is taken ``every`` so many."""
    return 2 * every + SLACK
