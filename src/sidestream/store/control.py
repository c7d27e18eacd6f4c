"""What a person may do to a job: never by waiting for its row (design D8, C9).

A locked row belongs to a job that runs, maybe for an hour. What cannot be written at once becomes a control row, which
workers read; a job with an unhandled one is not acquired.
"""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sidestream.job.names import check_priority
from sidestream.job.states import State
from sidestream.store.compare_and_set import UTC_NOW, CasResult, compare_and_set, write
from sidestream.store.cursor import Cursor

__all__ = ["CasResult", "Request", "cancel", "carry_out", "handled", "pending", "retry", "run_now", "set_priority"]

_CANCELLED = f"state = 'cancelled', ended_at = {UTC_NOW}, reason = NULL"
_CANCEL = compare_and_set(_CANCELLED, "state = 'pending'")
_ASK = """
    INSERT INTO sidestream_control (job_id, request) SELECT %(id)s::bigint, 'cancel'
    WHERE NOT EXISTS (SELECT FROM sidestream_control WHERE job_id = %(id)s::bigint AND handled_at IS NULL)"""
_UNHANDLED = "SELECT FROM sidestream_control WHERE id = %(request)s::bigint AND handled_at IS NULL"
# The request is locked, so that it is read as it is now: a person may have acquired the job again since it was seen.
_CARRY_OUT = f"""
    WITH asked AS MATERIALIZED (
        SELECT job_id FROM sidestream_control WHERE id = %(request)s::bigint AND handled_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED),
    mine AS MATERIALIZED (
        SELECT id FROM sidestream_job WHERE id = (SELECT job_id FROM asked) AND state = 'pending'
        FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sidestream_job j SET {_CANCELLED} FROM mine WHERE j.id = mine.id RETURNING j.state, j.attempts"""
_HANDLE_ONE = f"""
    UPDATE sidestream_control SET handled_at = {UTC_NOW} WHERE id IN (
        SELECT id FROM sidestream_control WHERE id = %(id)s::bigint AND handled_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING id"""
_ENDED_BADLY = frozenset({State.FAILED, State.CANCELLED})
# The attempts stay: they mark every compare-and-set, and a late writer of an old attempt must not find its mark again.
# One that was cancelled before its time, and had not begun, keeps that time.
RETRIED = f"""
    state = 'pending', ended_at = NULL,
    run_at = CASE WHEN j.state = 'cancelled' AND j.attempts = 0 THEN greatest(j.run_at, {UTC_NOW}) ELSE {UTC_NOW} END,
    forgiven = j.attempts, crashes = 0, suspects = 0,
    releases = 0, released_since = NULL, snoozes = 0, expires_at = NULL, reason = NULL, error_group = NULL"""
"""What a person's retry writes to a row."""
# In the statement that opens the rows, so that no task finds them open and the requests unhandled. This waits for a
# task that looks at a request at this moment, and maintenance wait for nobody.
REQUESTS_HANDLED = f"""
    handled AS (
        UPDATE sidestream_control c SET handled_at = {UTC_NOW} FROM %s o
        WHERE c.job_id = o.id AND c.handled_at IS NULL)"""
"""What a retry writes to the requests about the rows whose ids are in a part of the WITH."""
_RETRY = compare_and_set(RETRIED, "state IN ('failed', 'cancelled')", REQUESTS_HANDLED % "mine")
_PRIORITY = compare_and_set("priority = %(priority)s::smallint", "state = 'pending'")
_RUN_NOW = compare_and_set(f"run_at = least(j.run_at, {UTC_NOW})", "state = 'pending'")


@dataclass(frozen=True, slots=True)
class Request:
    """A control row that nobody handled yet."""

    id: int
    job_id: int
    #: What is asked; this release knows "cancel".
    request: str
    #: Aware, UTC.
    asked_at: datetime
    #: What the job's row says now; None when it is gone.
    state: State | None


def cancel(cur: Cursor, id: int) -> CasResult:  # noqa: A002
    """Cancel a pending job, or ask for it: ``locked`` means that a control row says so and a worker has to act.

    A job that commits its effect before that stays done.
    """
    written = write(cur, _CANCEL, {"id": id})
    if written.locked:
        cur.execute(_ASK, {"id": id})
    return written


def retry(cur: Cursor, id: int) -> CasResult:  # noqa: A002
    """Retry a failed or cancelled job, due now, its failures forgiven; ``moved`` means that it is open already.

    One that was cancelled before it was due for the first time is due at that time, as before.

    It has its old id, but no place in its key's line is promised to it.
    """
    return write(cur, _RETRY, {"id": id}, expected=_ENDED_BADLY)


def run_now(cur: Cursor, id: int) -> CasResult:  # noqa: A002
    """Make a pending job due now; ``locked`` means that another session has it, so it most likely runs."""
    return write(cur, _RUN_NOW, {"id": id})


def set_priority(cur: Cursor, id: int, priority: int) -> CasResult:  # noqa: A002
    """Give a pending job another priority, 0 (first) to 9; ``locked`` means that another session has it.

    Tell the broker as well (:meth:`~sidestream.broker.protocol.Broker.move`); the row alone counts while Redis is away.
    """
    return write(cur, _PRIORITY, {"id": id, "priority": check_priority(priority)})


def pending(cur: Cursor, limit: int = 1000) -> list[Request]:
    """Return up to ``limit`` requests that nobody handled, oldest first."""
    cur.execute(
        """SELECT c.id, c.job_id, c.request, c.asked_at, j.state
           FROM sidestream_control c LEFT JOIN sidestream_job j ON j.id = c.job_id
           WHERE c.handled_at IS NULL ORDER BY c.id LIMIT %(limit)s::integer""",
        {"limit": limit},
    )
    return [
        Request(found, job_id, request, asked_at.replace(tzinfo=UTC), None if state is None else State(state))
        for found, job_id, request, asked_at, state in cur.fetchall()
    ]


def carry_out(cur: Cursor, request: Request) -> CasResult | None:
    """Cancel the job of a request that is still unhandled; None means that somebody handled it since it was read.

    ``locked`` means that another session has the row: most likely it runs, and has to be stopped.
    """
    written = write(cur, _CARRY_OUT, {"id": request.job_id, "request": request.id})
    if written.locked:
        cur.execute(_UNHANDLED, {"request": request.id})
        if cur.fetchone() is None:
            return None
    return written


def handled(cur: Cursor, control_id: int) -> bool:
    """Mark a request as handled; False when somebody else did, or does so at this moment."""
    cur.execute(_HANDLE_ONE, {"id": control_id})
    return cur.fetchone() is not None
