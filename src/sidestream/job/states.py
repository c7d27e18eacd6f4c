"""The states that PostgreSQL stores, the ways of being open, and which moves are allowed."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What a job's row says."""

    OPEN = "open"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


class OpenBecause(StrEnum):
    """Why an open job is not done yet, as pages and commands show it."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    PARKED = "parked"
    RETRYING = "retrying"
    RUNNING = "running"


MOVES: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.DONE, State.DEAD, State.CANCELLED}),
    State.DEAD: frozenset({State.OPEN, State.CANCELLED}),
    State.CANCELLED: frozenset({State.OPEN}),
    State.DONE: frozenset(),
}
"""From a state to the states that may follow it; a person's retry opens a dead or cancelled job again."""

TERMINAL = frozenset({State.DONE, State.DEAD, State.CANCELLED})
