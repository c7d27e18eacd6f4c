"""Cancel, retry, run now or prioritize one job for a person, without waiting for its row.

A locked row belongs to a running job, which may take an hour. A cancel that cannot be written at once becomes a control
row. Workers read it, and do not acquire a job that has an unhandled one.
"""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sidestream.job.names import check_priority
from sidestream.job.states import State
from sidestream.store.compare_and_set import UTC_NOW, CasResult, compare_and_set, write
from sidestream.store.cursor import Cursor, aware, fetch_all
from sidestream.store.locks import NOT_BETWEEN

_CANCELLED = f"state = 'cancelled', ended_at = {UTC_NOW}, reason = NULL"
# Cancels a pending row, unless it runs. Index: the primary key (as for every compare-and-set).
_CANCEL = compare_and_set(_CANCELLED, f"state = 'pending' AND {NOT_BETWEEN}")
# Writes a cancel request unless one is unhandled. Index: sidestream_control_pending.
_REQUEST_CANCEL = """
    INSERT INTO sidestream_control (job_id, request) SELECT %(id)s::bigint, 'cancel'
    WHERE NOT EXISTS (SELECT FROM sidestream_control WHERE job_id = %(id)s::bigint AND handled_at IS NULL)"""
# Returns a row while the request is unhandled. Index: the primary key.
_UNHANDLED = "SELECT FROM sidestream_control WHERE id = %(request)s::bigint AND handled_at IS NULL"
# Cancels the row of an unhandled request. Locks both, skipping locked rows. Locking the request reads it as it is
# now: a person may have retried the job since the caller saw it.
_CARRY_OUT = f"""
    WITH asked AS MATERIALIZED (
        SELECT job_id FROM sidestream_control WHERE id = %(request)s::bigint AND handled_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED),
    mine AS MATERIALIZED (
        SELECT id FROM sidestream_job WHERE id = (SELECT job_id FROM asked) AND state = 'pending'
        AND {NOT_BETWEEN} FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sidestream_job j SET {_CANCELLED} FROM mine WHERE j.id = mine.id RETURNING j.state, j.attempts"""
# Marks a request as handled. Locks it, skipping locked rows. Index: the primary key.
_HANDLE_ONE = f"""
    UPDATE sidestream_control SET handled_at = {UTC_NOW} WHERE id IN (
        SELECT id FROM sidestream_control WHERE id = %(id)s::bigint AND handled_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING id"""
_ENDED_BADLY = frozenset({State.FAILED, State.CANCELLED})
# The attempts stay: they are the mark of every compare-and-set, and a late writer of an old attempt must not find its
# mark again. A job that was cancelled before it was due, and never started, keeps its time.
RETRIED = f"""
    state = 'pending', ended_at = NULL,
    run_at = CASE WHEN j.state = 'cancelled' AND j.attempts = 0 THEN greatest(j.run_at, {UTC_NOW}) ELSE {UTC_NOW} END,
    forgiven = j.attempts, crashes = 0, suspects = 0,
    releases = 0, released_since = NULL, snoozes = 0, expires_at = NULL, reason = NULL, error_group = NULL"""
"""What a person's retry writes to a row."""
# Part of the statement that makes the rows pending, so that no task finds them pending with their requests unhandled.
# It waits for a task that is handling one of the requests; that task never waits.
REQUESTS_HANDLED = f"""
    handled AS (
        UPDATE sidestream_control c SET handled_at = {UTC_NOW} FROM %s o
        WHERE c.job_id = o.id AND c.handled_at IS NULL)"""
"""What a retry writes to the requests for the rows whose ids are in a part of the WITH."""
# Makes a failed or cancelled row pending, unless it is locked, and handles its requests.
_RETRY = compare_and_set(RETRIED, "state IN ('failed', 'cancelled')", REQUESTS_HANDLED % "mine")
# Sets the priority of a pending row, unless it is locked.
_PRIORITY = compare_and_set("priority = %(priority)s::smallint", "state = 'pending'")
# Makes a pending row due, unless it is locked.
_RUN_NOW = compare_and_set(f"run_at = least(j.run_at, {UTC_NOW})", "state = 'pending'")
# Returns the unhandled requests with their jobs' states, oldest first. Index: the primary keys; the table is small.
_REQUESTS = """
    SELECT c.id, c.job_id, c.request, c.asked_at, j.state
    FROM sidestream_control c LEFT JOIN sidestream_job j ON j.id = c.job_id
    WHERE c.handled_at IS NULL ORDER BY c.id LIMIT %(limit)s::integer"""


@dataclass(frozen=True, slots=True)
class Request:
    """An unhandled control row."""

    id: int
    job_id: int
    #: What is requested; this release knows "cancel".
    request: str
    #: Aware, UTC.
    asked_at: datetime
    #: The state of the job's row; None when there is no such row.
    state: State | None


def cancel(cur: Cursor, id: int) -> CasResult:  # noqa: A002
    """Cancel a pending job; ``locked`` means that it runs and a cancel request was written.

    A job that commits its effect first stays done.
    """
    written = write(cur, _CANCEL, {"id": id})
    if written.locked:
        cur.execute(_REQUEST_CANCEL, {"id": id})
    return written


def retry(cur: Cursor, id: int) -> CasResult:  # noqa: A002
    """Retry a failed or cancelled job now; ``superseded`` means that it is pending already.

    A job that was cancelled before it was due, and never started, keeps its time. A retried job keeps its id, but jobs
    with the same key may have passed it.
    """
    return write(cur, _RETRY, {"id": id}, expected=_ENDED_BADLY)


def run_now(cur: Cursor, id: int) -> CasResult:  # noqa: A002
    """Make a pending job due now; ``locked`` means that it most likely runs."""
    return write(cur, _RUN_NOW, {"id": id})


def set_priority(cur: Cursor, id: int, priority: int) -> CasResult:  # noqa: A002
    """Set the priority of a pending job, 0 (first) to 9; ``locked`` if another session holds it.

    Tell the broker as well (``Broker.reprioritize``); the row alone counts while Redis is unavailable.
    """
    return write(cur, _PRIORITY, {"id": id, "priority": check_priority(priority)})


def pending(cur: Cursor, limit: int = 1000) -> list[Request]:
    """Return up to ``limit`` unhandled requests, oldest first."""
    cur.execute(_REQUESTS, {"limit": limit})
    return [
        Request(row.id, row.job_id, row.request, aware(row.asked_at), None if row.state is None else State(row.state))
        for row in fetch_all(cur)
    ]


def carry_out(cur: Cursor, request: Request) -> CasResult | None:
    """Cancel the job of a request; None means that the request was handled since it was read.

    ``locked`` means that another session holds the row: most likely the job runs and has to be stopped.
    """
    written = write(cur, _CARRY_OUT, {"id": request.job_id, "request": request.id})
    if written.locked:
        cur.execute(_UNHANDLED, {"request": request.id})
        if cur.fetchone() is None:
            return None
    return written


def handled(cur: Cursor, control_id: int) -> bool:
    """Mark a request as handled; False when another session did so, or does so at this moment."""
    cur.execute(_HANDLE_ONE, {"id": control_id})
    return cur.fetchone() is not None
