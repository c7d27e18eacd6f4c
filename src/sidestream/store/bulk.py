"""What is done to many jobs at once, in bounded lots: rows that somebody has locked are passed over."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sidestream.errors import InvalidJob
from sidestream.job.reason import Reason, ReasonCode
from sidestream.store.acquire import expired
from sidestream.store.compare_and_set import UTC_NOW, storable
from sidestream.store.control import REQUESTS_HANDLED, RETRIED
from sidestream.store.cursor import Cursor
from sidestream.store.job_row import OF_J, JobRow, read_job_row

LOT = 500
"""Jobs of one call, at most: some 20 ms of PostgreSQL's time."""
LARGEST_LOT = 5000

_NOTE = """
    UPDATE sidestream_job SET reason = %(reason)s::text WHERE id IN (
        SELECT id FROM sidestream_job
        WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending' AND reason IS DISTINCT FROM %(reason)s::text
        FOR NO KEY UPDATE SKIP LOCKED)"""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant; None: any. All that is given has to fit."""

    #: What failed jobs' errors share (:func:`~sidestream.job.errorgroup.error_group`).
    error_group: str | None = None
    action: str | None = None
    queue: str | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failed jobs whose errors are alike."""

    error_group: str
    count: int
    #: How many of them belong to which action, at most ten, the most frequent first.
    actions: Sequence[str]
    #: The newest of them: its id, its whole error, and when it ended (aware, UTC).
    newest_id: int
    newest_error: str
    newest_at: datetime


_CONDITIONS = {
    "error_group": "coalesce(error_group, '(no message)') = %(error_group)s::text",
    "action": "action = %(action)s::text",
    "queue": "queue = %(queue)s::text",
    "group": "group_name = %(group)s::text",
}
_GROUPS = """
    SELECT shared, n, (SELECT array_agg(action ORDER BY count DESC, action) FROM (
               SELECT action, count(*) FROM sidestream_job
               WHERE state = 'failed' AND coalesce(error_group, '(no message)') = shared
               GROUP BY action ORDER BY count(*) DESC, action LIMIT 10) counted),
           newest, j.error, j.ended_at
    FROM (SELECT coalesce(error_group, '(no message)') AS shared, count(*) AS n, max(id) AS newest
          FROM sidestream_job WHERE state = 'failed' /* fits */ GROUP BY 1 ORDER BY n DESC, newest DESC
          LIMIT %(limit)s::integer) grouped
    JOIN sidestream_job j ON j.id = newest ORDER BY n DESC, newest DESC"""
_LOT_OF_DEAD = """
    WITH lot AS MATERIALIZED (
        SELECT id FROM sidestream_job WHERE state = 'failed' AND id > %(after)s::bigint /* fits */
        ORDER BY id LIMIT %(limit)s::integer FOR NO KEY UPDATE SKIP LOCKED)"""
_RETRY = f"""{_LOT_OF_DEAD}, {REQUESTS_HANDLED % "lot"}
    UPDATE sidestream_job j SET {RETRIED} FROM lot WHERE j.id = lot.id RETURNING {OF_J}"""
_DISCARD = f"""{_LOT_OF_DEAD}
    UPDATE sidestream_job j SET state = 'cancelled', reason = %(reason)s::text FROM lot WHERE j.id = lot.id
    RETURNING {OF_J}"""
_EXPIRE = f"""
    WITH lot AS MATERIALIZED (
        SELECT id FROM sidestream_job j WHERE state = 'pending' AND expires_at <= {UTC_NOW} AND {expired("j")}
        ORDER BY expires_at LIMIT %(limit)s::integer FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sidestream_job j SET state = 'cancelled', ended_at = {UTC_NOW},
        reason = format('expired|{{"expires_at": "%%s"}}', to_char(j.expires_at, 'YYYY-MM-DD HH24:MI:SS'))
    FROM lot WHERE j.id = lot.id RETURNING {OF_J}"""


def error_groups(cur: Cursor, only: Filter = Filter(), limit: int = 100) -> list[ErrorGroup]:
    """Return the failed jobs by what their errors share, the most frequent first."""
    cur.execute(_fitting(_GROUPS, only), {**_values(only), "limit": limit})
    return [
        ErrorGroup(shared, count, tuple(actions), newest, error or "", at.replace(tzinfo=UTC))
        for shared, count, actions, newest, error, at in cur.fetchall()
    ]


def retry_failed(cur: Cursor, only: Filter, *, limit: int = LOT, after_id: int = 0) -> list[JobRow]:
    """Retry up to ``limit`` failed jobs, due now, their failures forgiven; return them, by id.

    Go on with ``after_id`` of the last one until fewer than ``limit`` come: what dies again meanwhile is then left.
    """
    return _lot(cur, _RETRY, only, limit, after_id)


def discard_failed(
    cur: Cursor, only: Filter, *, by: str | None = None, limit: int = LOT, after_id: int = 0
) -> list[JobRow]:
    """End up to ``limit`` failed jobs as cancelled; return them, by id. Go on as with :func:`retry_failed`."""
    reason = Reason(ReasonCode.DISCARDED, {} if by is None else {"by": storable(by)}).stored()
    return _lot(cur, _DISCARD, only, limit, after_id, reason)


def expire(cur: Cursor, limit: int = LOT) -> list[JobRow]:
    """Cancel up to ``limit`` pending jobs that were to be started by a moment that has passed; return them."""
    cur.execute(_EXPIRE, {"limit": limit})
    return [read_job_row(row) for row in cur.fetchall()]


def _lot(
    cur: Cursor, statement: str, only: Filter, limit: int, after_id: int, reason: str | None = None
) -> list[JobRow]:
    if not 1 <= limit <= LARGEST_LOT:
        raise InvalidJob(f"A lot of {limit} jobs is not allowed: expected 1 to {LARGEST_LOT}; repeat it for more.")
    parameters = {**_values(only), "limit": limit, "after": after_id, "reason": reason}
    cur.execute(_fitting(statement, only), parameters)
    return sorted((read_job_row(row) for row in cur.fetchall()), key=lambda job: job.id)


def _fitting(statement: str, only: Filter) -> str:
    conditions = "".join(f" AND {text}" for name, text in _CONDITIONS.items() if getattr(only, name) is not None)
    return statement.replace("/* fits */", conditions)


def _values(only: Filter) -> dict[str, object]:
    return {name: getattr(only, name) for name in _CONDITIONS}


def note_reason(cur: Cursor, ids: Sequence[int], reason: Reason) -> None:
    """Write why these pending jobs wait, for people, where it does not stand already; nothing is counted."""
    cur.execute(_NOTE, {"ids": list(ids), "reason": storable(reason.stored())})
