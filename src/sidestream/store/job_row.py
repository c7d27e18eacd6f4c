"""The part of a job's row that a broker needs, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from sidestream.job.codec import to_ms
from sidestream.job.job import DEFAULT_PRIORITY
from sidestream.job.reference import row_reference
from sidestream.store.cursor import Cursor, fetch_all
from sidestream.store.schema import Database


class _Columns(NamedTuple):
    """The columns that :func:`read_job_row` needs."""

    id: int
    action: str
    queue: str
    key: str | None
    run_at: datetime
    attempts: int
    priority: int
    group_name: str | None
    limit_key: str | None
    snoozes: int


COLUMNS = _Columns._fields
NAMES = ", ".join(COLUMNS)
OF_J = ", ".join(f"j.{name}" for name in COLUMNS)
# Returns these rows by id, in any state. Index: the primary key.
_FIND = f"SELECT {NAMES} FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id"  # noqa: S608  # constants


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row, as far as a broker needs it; a new one exists once its transaction commits."""

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
    #: Times that it was snoozed.
    snoozes: int = 0
    #: An insert found this duplicate instead: an earlier row, or one of the same call. Its job may have ended (a window
    #: outlasts its job), so it is not published again.
    existed: bool = False
    #: The duplicate was waiting and took over the new job's values.
    taken_over: bool = False
    #: Waiting rows that the same call cancelled, because this one replaces them.
    replaced: tuple[JobRow, ...] = ()

    @property
    def due_ms(self) -> int:
        """Unix milliseconds at which it is due."""
        return to_ms(self.run_at)

    @property
    def attempted(self) -> bool:
        """Return whether it was started before, so that it keeps its place in its key."""
        return self.attempts > 0 or self.snoozes > 0

    def reference(self, database: Database) -> bytes:
        """Return the packed reference to this row of ``database``."""
        return row_reference(database.tag, self.id, self.action, self.key, self.group, self.limit).pack()


def find_all(cur: Cursor, row_ids: Sequence[int]) -> list[JobRow]:
    """Return those of these rows that are there, in whatever state, by id."""
    cur.execute(_FIND, {"ids": list(row_ids)})
    return [read_job_row(row) for row in fetch_all(cur)]


def read_job_row(row: Any, *, prefix: str = "", existed: bool = False) -> JobRow:
    """Return the job of a named row that has :data:`COLUMNS`, each name after ``prefix``."""
    found = _Columns._make(_getter(prefix)(row))
    return JobRow(
        id=found.id,
        action=found.action,
        queue=found.queue,
        key=found.key,
        run_at=found.run_at.replace(tzinfo=UTC),
        attempts=found.attempts,
        priority=found.priority,
        group=found.group_name,
        limit=found.limit_key,
        snoozes=found.snoozes,
        existed=existed,
    )


@cache
def _getter(prefix: str) -> attrgetter[tuple[Any, ...]]:
    return attrgetter(*(f"{prefix}{name}" for name in COLUMNS))
