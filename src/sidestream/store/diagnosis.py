"""Everything that PostgreSQL knows of why a job waits, read in one statement."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sidestream.job.job import is_accused
from sidestream.job.reason import Reason
from sidestream.job.states import State
from sidestream.store.acquire import before_in_line, standing_before
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor
from sidestream.store.job_row import COLUMNS, OF_J, JobRow, read_job_row
from sidestream.store.locks import running_jobs

_BEFORE = ", ".join(f"before.{name}" for name in COLUMNS)
_FACTS = f"""
    SELECT j.state, j.run_at > {UTC_NOW}, j.forgiven, j.ended_at, j.expires_at, j.error, j.reason, j.suspects,
           EXISTS (SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL),
           started.worker, started.at, {UTC_NOW}, {OF_J}, {_BEFORE}
    FROM sidestream_job j
    LEFT JOIN LATERAL (SELECT * FROM sidestream_job before WHERE {before_in_line("j")} ORDER BY id LIMIT 1) before
        ON j.key IS NOT NULL AND j.state = 'pending'
    LEFT JOIN LATERAL (
        SELECT * FROM (SELECT event, worker, at FROM sidestream_attempt a WHERE a.job_id = j.id
                       ORDER BY a.id DESC LIMIT 1) newest WHERE event = 'started') started ON j.state = 'pending'
    WHERE j.id = %(id)s::bigint"""

_FIRST_IN_LINE = f"""
    SELECT j.id FROM sidestream_job j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'pending'
    AND NOT ({standing_before("j")}) ORDER BY j.id LIMIT %(limit)s::integer"""
_PENDING_AMONG = "SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending'"


@dataclass(frozen=True, slots=True)
class JobDiagnosis:
    """A row as far as its waiting is concerned. Moments are aware, in UTC."""

    job: JobRow
    state: State
    #: Its time has not come.
    early: bool
    #: Failures that a person's retry wrote off.
    forgiven: int
    ended_at: datetime | None
    expires_at: datetime | None
    #: Of the last failure.
    error: str | None
    #: Of the last release that was counted, or why it was cancelled.
    reason: Reason | None
    #: It runs alone next time: its last host died.
    suspect: bool
    #: A person asked to cancel it and no worker has done so yet.
    cancelling: bool
    #: The worker that said to have started it, which runs now, and when; only of long or lone jobs.
    started_by: str | None
    started_at: datetime | None
    #: PostgreSQL's clock.
    now: datetime
    #: The first of its key that stands before it.
    before: JobRow | None


def facts(cur: Cursor, id: int) -> JobDiagnosis | None:  # noqa: A002
    """Return what the row ``id`` tells; None when there is no such row."""
    cur.execute(_FACTS, {"id": id})
    row = cur.fetchone()
    if row is None:
        return None
    state, early, forgiven, ended_at, expires_at, error, reason, suspects, cancelling, by, at, now = row[:12]
    if by is not None and not running_jobs(cur, [id]):
        by = at = None  # its worker handed it back, or died, without another word
    own, before = row[12 : 12 + len(COLUMNS)], row[12 + len(COLUMNS) :]
    return JobDiagnosis(
        read_job_row(own),
        State(state),
        early,
        forgiven,
        _aware(ended_at),
        _aware(expires_at),
        error,
        None if reason is None else Reason.parse(reason),
        is_accused(suspects),
        cancelling,
        by,
        _aware(at),
        now.replace(tzinfo=UTC),
        read_job_row(before) if before[0] is not None else None,
    )


def first_in_line(cur: Cursor, ids: Iterable[int], limit: int) -> set[int]:
    """Return which of these pending rows, the first ``limit`` by id, no row of the same key stands before."""
    cur.execute(_FIRST_IN_LINE, {"ids": list(ids), "limit": limit})
    return {row_id for (row_id,) in cur.fetchall()}


def pending_among(cur: Cursor, ids: Iterable[int]) -> set[int]:
    """Return which of these rows are open; the others ended or are gone."""
    cur.execute(_PENDING_AMONG, {"ids": list(ids)})
    return {row_id for (row_id,) in cur.fetchall()}


def _aware(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
