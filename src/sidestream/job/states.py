"""The states that PostgreSQL stores, the ways of being open, and which moves are allowed."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What a job's row says."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Status(StrEnum):
    """Why a pending job is not done yet, as pages and commands show it."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    LIMITED = "limited"
    PAUSED = "paused"
    UNROUTED = "unrouted"
    RETRYING = "retrying"
    RUNNING = "running"


MOVES: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.DONE, State.FAILED, State.CANCELLED}),
    State.FAILED: frozenset({State.PENDING, State.CANCELLED}),
    State.CANCELLED: frozenset({State.PENDING}),
    State.DONE: frozenset(),
}
"""From a state to the states that may follow it; a person's retry retries a failed or cancelled job."""

TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})
