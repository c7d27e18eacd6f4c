"""What to publish for rows: the one place that turns a row into a :class:`Publication`."""

from __future__ import annotations

from collections.abc import Sequence

from sidestream.broker.protocol import Publication, lane
from sidestream.job.codec import to_ms
from sidestream.job.job import Job
from sidestream.store.job_row import JobRow
from sidestream.store.schema import Database


def publication_of(
    row: JobRow, database: Database, *, due_ms: int | None = None, edited: bool = False, withdrawn: bool = False
) -> Publication:
    """Return the publication of a row, due at ``due_ms`` or else at the row's time."""
    return Publication(
        row.reference(database),
        lane(database.tag, row.queue),
        row.due_ms if due_ms is None else due_ms,
        attempted=row.attempted,
        priority=row.priority,
        edited=edited,
        withdrawn=withdrawn,
    )


def publications_of(rows: Sequence[JobRow], jobs: Sequence[Job], database: Database) -> list[Publication]:
    """Return what to publish once the rows that were inserted for ``jobs`` are committed.

    A row that a new one replaces is withdrawn. A new row without a time is due now, by the clock of the broker.
    """
    withdrawn = [
        publication_of(one, database, due_ms=0, edited=True, withdrawn=True) for row in rows for one in row.replaced
    ]
    return withdrawn + [
        publication_of(row, database, due_ms=0 if job.run_at is None else to_ms(job.run_at), edited=row.taken_over)
        for row, job in zip(rows, jobs, strict=True)
        if row.taken_over or not row.existed
    ]
