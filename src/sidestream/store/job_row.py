"""A row as far as a broker has to know it, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sidestream.job.codec import to_ms
from sidestream.job.job import DEFAULT_PRIORITY
from sidestream.job.reference import row_reference
from sidestream.store.cursor import Cursor
from sidestream.store.schema import Database

COLUMNS = ("id", "action", "queue", "key", "run_at", "attempts", "priority", "group_name", "limit_key", "snoozes")
"""What :func:`read_job_row` is made of, in this order."""
NAMES = ", ".join(COLUMNS)
OF_J = ", ".join(f"j.{name}" for name in COLUMNS)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row, as far as a broker has to know it; a new one exists once its transaction commits."""

    id: int
    action: str
    queue: str
    key: str | None
    #: When it is due; aware, UTC.
    run_at: datetime
    #: Starts that failed or crashed.
    attempts: int = 0
    #: 0 (first) to 9.
    priority: int = DEFAULT_PRIORITY
    group: str | None = None
    limit: str | None = None
    #: Times that it put itself off.
    snoozes: int = 0
    #: Of a job that was to be inserted: its unique found this row, which was there before, or earlier in the same call.
    #: It may be over (a window outlasts its job), so it is not published anew.
    existed: bool = False
    #: That row waited and took over what the new job asked for.
    taken_over: bool = False
    #: Rows that waited and were cancelled by the same call, because this one replaces them.
    replaced: tuple[JobRow, ...] = ()

    @property
    def due_ms(self) -> int:
        """Unix milliseconds at which it is due."""
        return to_ms(self.run_at)

    @property
    def attempted(self) -> bool:
        """Whether it was started before: such a job keeps its place in its key's line while it waits."""
        return self.attempts > 0 or self.snoozes > 0

    def reference(self, database: Database) -> bytes:
        """Return the packed reference to this row of ``database``."""
        return row_reference(database.tag, self.id, self.action, self.key, self.group, self.limit).pack()


def find_all(cur: Cursor, row_ids: Sequence[int]) -> list[JobRow]:
    """Return those of these rows that are there, in whatever state, by id."""
    cur.execute(
        f"SELECT {NAMES} FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id",  # noqa: S608  # ours
        {"ids": list(row_ids)},
    )
    return [read_job_row(row) for row in cur.fetchall()]


def read_job_row(columns: Sequence[Any], *, existed: bool = False) -> JobRow:
    """Return the row whose :data:`COLUMNS` these are."""
    row_id, action, queue, key, run_at, attempts, priority, group, limit, snoozes = columns
    return JobRow(
        row_id, action, queue, key, run_at.replace(tzinfo=UTC), attempts, priority, group, limit, snoozes, existed
    )
