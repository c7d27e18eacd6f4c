"""The job itself: one unit of work, as its row or its signed bytes state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
"""Between 0 (first) and 9."""
LOWEST_PRIORITY = 9
MAX_CRASHES = 3
"""A job that kills its process or its host runs at most this often (promise 7)."""
ACCUSED_AFTER = 2
"""A job that ran during so many deaths of its host runs alone, and is charged with the next one."""
MAX_RELEASES = 1000
"""A job that is released more often than this fails with the reason."""


@dataclass(frozen=True, slots=True)
class Unique:
    """What makes a second job a duplicate, for how long, and what then happens."""

    #: Jobs with the same text are duplicates of each other; scope is the database.
    key: str
    #: "started": while the first one waits. "done": until it ends. "window": for ``seconds`` after it was enqueued,
    #: whatever became of it.
    until: Literal["started", "done", "window"] = "done"
    #: Length of the window in seconds; 0 for the other two.
    seconds: float = 0.0
    #: "return": the existing job is the answer. "replace": the existing one takes over arguments and time, unless it
    #: runs. "newest": the one that waits is cancelled, the new one runs after the one that is running.
    on_conflict: Literal["return", "replace", "newest"] = "return"


def is_accused(suspects: int) -> bool:
    """Return whether the job runs alone: it is accused, or was charged with a death (below 0)."""
    return suspects < 0 or suspects >= ACCUSED_AFTER


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work."""

    #: Name of the declared action.
    action: str
    #: Positional arguments, JSON values.
    args: tuple[Any, ...] = ()
    #: Keyword arguments, JSON values.
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: Named backlog.
    queue: str = DEFAULT_QUEUE
    #: Jobs with the same key run one at a time, in the order of their ids; scope is the database.
    key: str | None = None
    #: Not to be started before this moment (aware, UTC); None means at once.
    run_at: datetime | None = None
    #: The row's id; None for a direct job and for a job that is not inserted yet.
    id: int | None = None
    #: The direct job's uuid; None for a row.
    uuid: UUID | None = None
    #: Starts that ended in a failure or a crash so far.
    attempts: int = 0
    #: How many of them killed their process.
    crashes: int = 0
    #: The company it belongs to, and the user it runs as; None where there are none.
    company_id: int | None = None
    user_id: int | None = None
    #: Who asked for it, where that is not the user that it runs as.
    requested_by: int | None = None
    #: What else it runs with (language, time zone, allowed companies): JSON, by whoever enqueued it.
    context: str | None = None
    #: 0 (first) to 9 within its queue.
    priority: int = DEFAULT_PRIORITY
    #: The tenant among whom the queue is shared fairly; None: the group of those that have none.
    group: str | None = None
    #: What it counts against: ``rule`` or ``rule:value`` ("courier:7"); None: no rule of its own.
    limit: str | None = None
    #: What makes another job a duplicate of it, and what then happens; None: nothing does.
    unique: Unique | None = None
    #: Ends as cancelled when it has not started by then (aware, UTC); None: never.
    expires_at: datetime | None = None
    #: Model and ids of the records that it is about, so that they find it.
    records: tuple[str, tuple[int, ...]] | None = None
