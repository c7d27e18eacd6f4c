"""Read everything that PostgreSQL knows about why a job waits, in one statement."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sidestream.job.job import is_accused
from sidestream.job.reason import Reason
from sidestream.job.states import State
from sidestream.store.acquire import has_predecessor, precedes
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, aware, fetch_ids, fetch_one
from sidestream.store.job_row import COLUMNS, OF_J, JobRow, read_job_row
from sidestream.store.locks import running_jobs

_BEFORE = ", ".join(f"before.{name} AS before_{name}" for name in COLUMNS)
# Returns the row, its newest unfinished start and the first earlier row with its key. Index: the primary key,
# sidestream_job_key, sidestream_attempt_job, sidestream_control_pending.
_DIAGNOSE = f"""
    SELECT j.state, j.run_at > {UTC_NOW} AS early, j.forgiven, j.ended_at, j.expires_at, j.error, j.reason, j.suspects,
           EXISTS (SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL) AS cancelling,
           started.worker AS started_by, started.at AS started_at, {UTC_NOW} AS now, {OF_J}, {_BEFORE}
    FROM sidestream_job j
    LEFT JOIN LATERAL (SELECT * FROM sidestream_job before WHERE {precedes("j")} ORDER BY id LIMIT 1) before
        ON j.key IS NOT NULL AND j.state = 'pending'
    LEFT JOIN LATERAL (
        SELECT * FROM (SELECT event, worker, at FROM sidestream_attempt a WHERE a.job_id = j.id
                       ORDER BY a.id DESC LIMIT 1) newest WHERE event = 'started') started ON j.state = 'pending'
    WHERE j.id = %(id)s::bigint"""
# Returns which of these pending rows no earlier row with the same key blocks. Index: sidestream_job_key.
_FIRST_OF_KEYS = f"""
    SELECT j.id FROM sidestream_job j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'pending'
    AND NOT ({has_predecessor("j")}) ORDER BY j.id LIMIT %(limit)s::integer"""
# Returns which of these rows are pending. Index: the primary key.
_PENDING_AMONG = "SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending'"


@dataclass(frozen=True, slots=True)
class JobDiagnosis:
    """What a row says about why its job waits. Moments are aware, in UTC."""

    job: JobRow
    state: State
    #: It is not due yet.
    early: bool
    #: Failed attempts that a person's retry forgave.
    forgiven: int
    ended_at: datetime | None
    expires_at: datetime | None
    #: Of the last failure.
    error: str | None
    #: Why it was released last, or cancelled.
    reason: Reason | None
    #: It runs alone next time: its last host died.
    suspect: bool
    #: A person requested to cancel it, and no worker has done so yet.
    cancelling: bool
    #: The worker that runs it now, and since when; known only for long jobs and jobs that run alone.
    started_by: str | None
    started_at: datetime | None
    #: PostgreSQL's clock.
    now: datetime
    #: The earliest pending job with its key that blocks it.
    before: JobRow | None
    #: A session of a worker's child holds it, as :func:`~sidestream.store.locks.running_jobs` says.
    running: bool = False


def diagnose(cur: Cursor, id: int) -> JobDiagnosis | None:  # noqa: A002
    """Return what the row ``id`` says about why its job waits; None when there is no such row."""
    cur.execute(_DIAGNOSE, {"id": id})
    row = fetch_one(cur)
    if row is None:
        return None
    # Without a running job, its worker released it or died, and wrote nothing more.
    runs = row.state == State.PENDING and bool(running_jobs(cur, [id]))
    return JobDiagnosis(
        job=read_job_row(row),
        state=State(row.state),
        early=row.early,
        forgiven=row.forgiven,
        ended_at=aware(row.ended_at),
        expires_at=aware(row.expires_at),
        error=row.error,
        reason=None if row.reason is None else Reason.parse(row.reason),
        suspect=is_accused(row.suspects),
        cancelling=row.cancelling,
        started_by=row.started_by if runs else None,
        started_at=aware(row.started_at) if runs else None,
        now=aware(row.now),
        before=None if row.before_id is None else read_job_row(row, prefix="before_"),
        running=runs,
    )


def first_of_keys(cur: Cursor, ids: Iterable[int], limit: int) -> set[int]:
    """Return up to ``limit`` of these rows, by id, that no earlier row of their key blocks."""
    cur.execute(_FIRST_OF_KEYS, {"ids": list(ids), "limit": limit})
    return fetch_ids(cur)


def pending_among(cur: Cursor, ids: Iterable[int]) -> set[int]:
    """Return which of these rows are pending; the others ended or were deleted."""
    cur.execute(_PENDING_AMONG, {"ids": list(ids)})
    return fetch_ids(cur)
