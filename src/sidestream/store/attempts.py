"""Insert the attempt rows that workers write for everything except an ordinary "done".

They never touch the job's row, so they do not wait for a running job, and a running job does not wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sidestream.job.reason import Reason
from sidestream.store.compare_and_set import storable
from sidestream.store.cursor import Cursor, aware, fetch_all, fetch_ids

# Writes one attempt row. Locks no other row.
_RECORD = """
    INSERT INTO sidestream_attempt (job_id, worker, slot, event, detail)
    VALUES (%(job)s::bigint, %(worker)s::text, %(slot)s::smallint, %(event)s::text, %(detail)s::text)"""
# Returns the pending jobs that the worker started and did not end. Index: sidestream_attempt_started, then _job.
_UNFINISHED = """
    SELECT j.id FROM sidestream_attempt a JOIN sidestream_job j ON j.id = a.job_id
    WHERE a.worker = %(worker)s::text AND a.event = 'started' AND j.state = 'pending'
    AND NOT EXISTS (SELECT FROM sidestream_attempt later
                    WHERE later.job_id = a.job_id AND later.id > a.id AND later.worker = a.worker
                    AND later.event <> 'started')"""
# Returns the attempt rows of one job, oldest first. Index: sidestream_attempt_job.
_OF_JOB = "SELECT event, at, worker, slot, detail FROM sidestream_attempt WHERE job_id = %(job)s::bigint ORDER BY id"


class Event(StrEnum):
    """What happened."""

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
        _RECORD,
        {
            "job": job_id,
            "worker": worker,
            "slot": slot,
            "event": Event(event).value,
            "detail": None if detail is None else storable(detail),
        },
    )


def unfinished(cur: Cursor, worker: str) -> set[int]:
    """Return the ids of the pending jobs that ``worker`` recorded as started and not as ended."""
    cur.execute(_UNFINISHED, {"worker": worker})
    return fetch_ids(cur)


def of_job(cur: Cursor, job_id: int) -> list[Attempt]:
    """Return the job's attempt rows, oldest first."""
    cur.execute(_OF_JOB, {"job": job_id})
    return [Attempt(Event(row.event), aware(row.at), row.worker, row.slot, row.detail) for row in fetch_all(cur)]
