"""What happened to a job beyond "done": insert-only rows that workers write (C17).

They never touch the job's row, so nobody waits: neither for a job that runs, nor a running job for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sidestream.job.reason import Reason
from sidestream.store.compare_and_set import storable
from sidestream.store.cursor import Cursor


class Event(StrEnum):
    """What an attempt row tells."""

    STARTED = "started"
    FAILED = "failed"
    CRASHED = "crashed"
    RELEASED = "released"
    DONE = "done"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt row."""

    event: Event
    #: When it was written; aware, UTC.
    at: datetime
    worker: str
    #: Which child; -1 when none is meant.
    slot: int
    #: A :class:`~sidestream.job.reason.Reason` as text, or an error with its traceback.
    detail: str | None

    @property
    def reason(self) -> Reason:
        """What its detail says; an error is of code TEXT."""
        return Reason.parse(self.detail or "")

    @property
    def text(self) -> str | None:
        """What its detail says in English."""
        return None if self.detail is None else str(self.reason)


def record(cur: Cursor, job_id: int, worker: str, slot: int, event: str, detail: str | None = None) -> None:
    """Insert one row; ``event`` is one of :class:`Event`, ``slot`` -1 when no child is meant."""
    cur.execute(
        """INSERT INTO sidestream_attempt (job_id, worker, slot, event, detail)
           VALUES (%(job)s::bigint, %(worker)s::text, %(slot)s::smallint, %(event)s::text, %(detail)s::text)""",
        {
            "job": job_id,
            "worker": worker,
            "slot": slot,
            "event": Event(event).value,
            "detail": None if detail is None else storable(detail),
        },
    )


def open_starts(cur: Cursor, worker: str) -> frozenset[int]:
    """Return the ids of the pending jobs that ``worker`` said to have started and not to have ended."""
    cur.execute(
        """SELECT j.id FROM sidestream_attempt a JOIN sidestream_job j ON j.id = a.job_id
           WHERE a.worker = %(worker)s::text AND a.event = 'started' AND j.state = 'pending'
           AND NOT EXISTS (SELECT FROM sidestream_attempt later
                           WHERE later.job_id = a.job_id AND later.id > a.id AND later.worker = a.worker
                           AND later.event <> 'started')""",
        {"worker": worker},
    )
    return frozenset(job_id for (job_id,) in cur.fetchall())


def of_job(cur: Cursor, job_id: int) -> list[Attempt]:
    """Return the job's attempt rows, oldest first."""
    cur.execute(
        "SELECT event, at, worker, slot, detail FROM sidestream_attempt WHERE job_id = %(job)s::bigint ORDER BY id",
        {"job": job_id},
    )
    return [
        Attempt(Event(event), at.replace(tzinfo=UTC), worker, slot, detail)
        for event, at, worker, slot, detail in cur.fetchall()
    ]
