"""Change many jobs at once, in bounded batches that skip locked rows."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sidestream.errors import InvalidJob
from sidestream.job.reason import Reason, ReasonCode
from sidestream.store.acquire import expired
from sidestream.store.compare_and_set import UTC_NOW, storable
from sidestream.store.control import REQUESTS_HANDLED, RETRIED
from sidestream.store.cursor import Cursor, aware, fetch_all
from sidestream.store.job_row import OF_J, JobRow, read_job_row
from sidestream.store.locks import NOT_BETWEEN

LOT = 500
"""Default number of jobs per call: about 20 ms of PostgreSQL's time."""
LARGEST_LOT = 5000
"""Largest number of jobs per call."""

# Writes the reason of pending rows that have another one. Locks them, skipping locked rows. Index: the primary key.
_NOTE = """
    UPDATE sidestream_job SET reason = %(reason)s::text WHERE id IN (
        SELECT id FROM sidestream_job
        WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending' AND reason IS DISTINCT FROM %(reason)s::text
        FOR NO KEY UPDATE SKIP LOCKED)"""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs to change: those that match every field that is not None."""

    #: The error group of failed jobs (:func:`~sidestream.job.errorgroup.error_group`).
    error_group: str | None = None
    action: str | None = None
    queue: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failed jobs with similar errors."""

    error_group: str
    count: int
    #: Their actions, at most ten, the most frequent first.
    actions: Sequence[str]
    #: The newest of them: its id (of a direct job its uuid), its complete error, and when it ended (aware, UTC).
    newest_id: int | UUID
    newest_error: str
    newest_at: datetime


_CONDITIONS = {
    "error_group": "coalesce(error_group, '(no message)') = %(error_group)s::text",
    "action": "action = %(action)s::text",
    "queue": "queue = %(queue)s::text",
    "group": "group_name = %(group)s::text",
}
# Returns one row per error group. Index: sidestream_job_ended.
_GROUPS = """
    SELECT shared AS error_group, n AS count, (SELECT array_agg(action ORDER BY count DESC, action) FROM (
               SELECT action, count(*) FROM sidestream_job
               WHERE state = 'failed' AND coalesce(error_group, '(no message)') = shared
               GROUP BY action ORDER BY count(*) DESC, action LIMIT 10) counted) AS actions,
           newest AS newest_id, coalesce(j.error, '') AS newest_error, j.ended_at AS newest_at
    FROM (SELECT coalesce(error_group, '(no message)') AS shared, count(*) AS n, max(id) AS newest
          FROM sidestream_job WHERE state = 'failed' /* fits */ GROUP BY 1 ORDER BY n DESC, newest DESC
          LIMIT %(limit)s::integer) grouped
    JOIN sidestream_job j ON j.id = newest ORDER BY n DESC, newest DESC"""
# Locks the next failed rows by id, skipping locked rows. Index: sidestream_job_ended.
_LOT_OF_FAILED = """
    WITH lot AS MATERIALIZED (
        SELECT id FROM sidestream_job WHERE state = 'failed' AND id > %(after)s::bigint /* fits */
        ORDER BY id LIMIT %(limit)s::integer FOR NO KEY UPDATE SKIP LOCKED)"""
# Makes a batch of failed rows pending and returns them. Waits for a task that handles a cancel request of theirs.
_RETRY = f"""{_LOT_OF_FAILED}, {REQUESTS_HANDLED % "lot"}
    UPDATE sidestream_job j SET {RETRIED} FROM lot WHERE j.id = lot.id RETURNING {OF_J}"""
# Makes a batch of failed rows cancelled and returns them.
_DISCARD = f"""{_LOT_OF_FAILED}
    UPDATE sidestream_job j SET state = 'cancelled', reason = %(reason)s::text FROM lot WHERE j.id = lot.id
    RETURNING {OF_J}"""
# Cancels pending rows that expired and returns them. Locks them, skipping locked rows. Index: sidestream_job_expires.
# A job that takes its lock after NOT_BETWEEN read the locks acquires its row later, and then finds that it expired.
_EXPIRE = f"""
    WITH lot AS MATERIALIZED (
        SELECT id FROM sidestream_job j WHERE state = 'pending' AND {expired("j")} AND {NOT_BETWEEN}
        ORDER BY expires_at LIMIT %(limit)s::integer FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sidestream_job j SET state = 'cancelled', ended_at = {UTC_NOW},
        reason = format('expired|{{"expires_at": "%%s"}}', to_char(j.expires_at, 'YYYY-MM-DD HH24:MI:SS'))
    FROM lot WHERE j.id = lot.id RETURNING {OF_J}"""


def error_groups(cur: Cursor, only: Filter = Filter(), limit: int = 100) -> list[ErrorGroup]:
    """Return the groups of failed jobs with similar errors, the most frequent first."""
    cur.execute(_fitting(_GROUPS, only), {**_values(only), "limit": limit})
    return [
        ErrorGroup(
            row.error_group, row.count, tuple(row.actions), row.newest_id, row.newest_error, aware(row.newest_at)
        )
        for row in fetch_all(cur)
    ]


def retry_failed(cur: Cursor, only: Filter, *, limit: int = LOT, after_id: int = 0) -> list[JobRow]:
    """Retry up to ``limit`` failed jobs now, forgive their failures, and return them by id.

    Repeat with ``after_id`` of the last one until fewer than ``limit`` are returned. Jobs that fail again meanwhile are
    then not retried twice.
    """
    return _lot(cur, _RETRY, only, limit, after_id)


def discard_failed(
    cur: Cursor, only: Filter, *, by: str | None = None, limit: int = LOT, after_id: int = 0
) -> list[JobRow]:
    """Cancel up to ``limit`` failed jobs; return them by id. Repeat as for :func:`retry_failed`."""
    reason = Reason(ReasonCode.DISCARDED, {} if by is None else {"by": storable(by)}).stored()
    return _lot(cur, _DISCARD, only, limit, after_id, reason)


def expire(cur: Cursor, limit: int = LOT) -> list[JobRow]:
    """Cancel up to ``limit`` pending jobs whose start deadline has passed; return them."""
    cur.execute(_EXPIRE, {"limit": limit})
    return [read_job_row(row) for row in fetch_all(cur)]


def _lot(
    cur: Cursor, statement: str, only: Filter, limit: int, after_id: int, reason: str | None = None
) -> list[JobRow]:
    if not 1 <= limit <= LARGEST_LOT:
        raise InvalidJob(f"A limit of {limit} jobs is not allowed: expected 1 to {LARGEST_LOT}; repeat it for more.")
    parameters = {**_values(only), "limit": limit, "after": after_id, "reason": reason}
    cur.execute(_fitting(statement, only), parameters)
    return sorted((read_job_row(row) for row in fetch_all(cur)), key=lambda job: job.id)


def _fitting(statement: str, only: Filter) -> str:
    conditions = "".join(f" AND {text}" for name, text in _CONDITIONS.items() if getattr(only, name) is not None)
    return statement.replace("/* fits */", conditions)


def _values(only: Filter) -> dict[str, object]:
    return {name: getattr(only, name) for name in _CONDITIONS}


def note_reason(cur: Cursor, ids: Sequence[int], reason: Reason) -> None:
    """Write the reason why these pending jobs wait, unless they have it already."""
    cur.execute(_NOTE, {"ids": list(ids), "reason": storable(reason.stored())})
