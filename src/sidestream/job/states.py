"""The states that PostgreSQL stores, and the statuses of a pending job."""

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
