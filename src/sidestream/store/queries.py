"""Read jobs: chunks for the reconciler, overdue rows and pages. Locks no row."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sidestream.job.states import State
from sidestream.store.attempts import Attempt, of_job
from sidestream.store.candidates import LEVELS
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, aware, fetch_all, fetch_one, naive
from sidestream.store.job_row import NAMES, OF_J, JobRow, read_job_row

CHUNK = 32_768
"""Number of ids in one chunk; the same as :data:`sidestream.broker.protocol.CHUNK`."""
FEW = 20_000
"""Number of overdue rows up to which :func:`overdue` finds them by time; more are found in the order of ids."""

# Returns the pending rows of a chunk whose bit in "known" is unset, by id. Index: sidestream_job_pending. A keyed job
# that was started before is included however late it is due: without it, the later jobs of its key would be granted.
# Redis counts bits from each byte's most significant one, get_bit from its least significant one.
_UNPUBLISHED = f"""
    SELECT {OF_J} FROM sidestream_job j
    WHERE j.state = 'pending' AND j.id > greatest(%(after)s::bigint, %(first)s::bigint - 1)
    AND j.id < %(first)s::bigint + {CHUNK} AND (j.run_at <= coalesce(%(until)s::timestamp, 'infinity')
        OR (j.key IS NOT NULL AND (j.attempts > 0 OR j.snoozes > 0)))
    AND CASE WHEN j.id - %(first)s::bigint < length(%(known)s::bytea) * 8
        THEN get_bit(%(known)s::bytea, (j.id - %(first)s::bigint) # 7) = 0 ELSE true END
    ORDER BY j.id LIMIT %(limit)s::integer"""
# Returns the numbers of the chunks that have pending rows, ascending. Index: sidestream_job_pending, one probe per
# chunk.
_PENDING_CHUNKS = f"""
    WITH RECURSIVE chunk AS (
        (SELECT id / {CHUNK} AS number FROM sidestream_job WHERE state = 'pending' ORDER BY id LIMIT 1)
        UNION ALL
        SELECT (SELECT id / {CHUNK} FROM sidestream_job
                WHERE state = 'pending' AND id >= (chunk.number + 1) * {CHUNK} ORDER BY id LIMIT 1)
        FROM chunk WHERE chunk.number IS NOT NULL)
    SELECT number FROM chunk WHERE number IS NOT NULL"""
# Returns overdue rows by id, and in each row whether there are more than FEW; one row of NULLs when there are none.
# Index: sidestream_job_due, because most pending rows may be scheduled for a later day.
_OVERDUE_AMONG_FEW = f"""
    WITH RECURSIVE queues AS (
        (SELECT queue FROM sidestream_job WHERE state = 'pending' ORDER BY queue LIMIT 1)
        UNION ALL
        SELECT (SELECT queue FROM sidestream_job
                WHERE state = 'pending' AND queue > queues.queue ORDER BY queue LIMIT 1)
        FROM queues WHERE queues.queue IS NOT NULL),
    few AS MATERIALIZED (
        SELECT due.* FROM queues CROSS JOIN {LEVELS} CROSS JOIN LATERAL (
            SELECT {NAMES} FROM sidestream_job
            WHERE state = 'pending' AND queue = queues.queue AND priority = level.priority
            AND run_at < {UTC_NOW} - %(older)s::float8 * interval '1 second'
            ORDER BY run_at LIMIT {FEW + 1}) due  -- ordered, so that the index serves levels without rows, too
        LIMIT {FEW + 1}),
    found AS MATERIALIZED (SELECT * FROM few WHERE id > %(after)s::bigint ORDER BY id LIMIT %(limit)s::integer)
    SELECT (SELECT count(*) FROM few) > {FEW} AS many, {OF_J}
    FROM (SELECT) always LEFT JOIN found j ON true
    ORDER BY j.id"""
# Returns overdue rows by id. Index: sidestream_job_pending.
_OVERDUE = f"""
    SELECT {OF_J} FROM sidestream_job j
    WHERE j.state = 'pending' AND j.id > %(after)s::bigint
    AND j.run_at < {UTC_NOW} - %(older)s::float8 * interval '1 second'
    ORDER BY j.id LIMIT %(limit)s::integer"""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as a person sees it, without its arguments. Moments are aware, in UTC."""

    id: int
    #: Of a direct job; None for others.
    uuid: UUID | None
    action: str
    queue: str
    key: str | None
    state: State
    created_at: datetime
    run_at: datetime
    ended_at: datetime | None
    #: Starts that failed or crashed.
    attempts: int
    #: How many of them a person's retry forgave.
    forgiven: int
    crashes: int
    suspects: int
    releases: int
    #: Of the last failure.
    error: str | None
    #: Why it was released last, or cancelled.
    reason: str | None
    #: Whether ``run_at`` has come.
    due: bool
    #: Whether a person requested to cancel it and no worker has done so yet.
    cancelling: bool
    #: 0 (first) to 9.
    priority: int
    group: str | None
    limit: str | None
    unique: str | None
    #: Times that it was snoozed.
    snoozes: int
    #: When the transaction that wrote "done" began; None before.
    started_at: datetime | None
    #: Of a failed job: the group of jobs with similar errors.
    error_group: str | None


# By field of Row: its column.
_COLUMNS = {one.name: f"j.{one.name}" for one in fields(Row)} | {
    "uuid": "j.uuid::text",
    "due": f"j.run_at <= {UTC_NOW}",
    "cancelling": "EXISTS (SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL)",
    "group": "j.group_name",
    "limit": "j.limit_key",
    "unique": "j.unique_key",
}
_SELECT = f"SELECT {', '.join(f'{column} AS {name}' for name, column in _COLUMNS.items())}"
# Returns rows, newest first. Index: the primary key; of a state the index of that state.
_PAGE = f"{_SELECT} FROM sidestream_job j WHERE /* conditions */ ORDER BY j.id DESC LIMIT %(limit)s::integer"
# Returns one row and its payload. Index: the primary key.
_JOB = f"{_SELECT}, j.payload FROM sidestream_job j WHERE j.id = %(id)s::bigint"


def unpublished(
    cur: Cursor, chunk: int, known: bytes, after_id: int = 0, until: datetime | None = None, limit: int = 500
) -> list[JobRow]:
    """Return up to ``limit`` pending rows of the chunk whose bit in ``known`` is unset.

    The chunk begins with the id ``chunk * CHUNK``. Read ``known`` from the broker before this call: a bit that is read
    later may belong to a row that ended in between. It has the most significant bit first, and may be shorter than the
    chunk. With ``until`` (aware), only rows that are due by then, and keyed ones that were started before.
    """
    parameters = {"first": chunk * CHUNK, "after": after_id, "until": naive(until), "known": known, "limit": limit}
    cur.execute(_UNPUBLISHED, parameters)
    return [read_job_row(row) for row in fetch_all(cur)]


def pending_chunks(cur: Cursor) -> list[int]:
    """Return the numbers of the chunks that have pending rows, ascending."""
    cur.execute(_PENDING_CHUNKS)
    return [number for (number,) in cur.fetchall()]


def overdue(cur: Cursor, older_than_s: float, after_id: int = 0, limit: int = 500) -> list[JobRow]:
    """Return up to ``limit`` pending rows due for over ``older_than_s`` seconds, by id.

    It stays fast with a million scheduled jobs and with a million overdue ones.
    """
    parameters = {"older": older_than_s, "after": after_id, "limit": limit}
    cur.execute(_OVERDUE_AMONG_FEW, parameters)
    rows = fetch_all(cur)
    if rows[0].many:
        cur.execute(_OVERDUE, parameters)
        rows = fetch_all(cur)
    return [read_job_row(row) for row in rows if row.id is not None]


def page(
    cur: Cursor,
    state: State | str | None = None,
    queue: str | None = None,
    before_id: int | None = None,
    limit: int = 50,
    *,
    action: str | None = None,
    group: str | None = None,
    key: str | None = None,
    error_group: str | None = None,
    only: Collection[int] | None = None,
) -> list[Row]:
    """Return up to ``limit`` rows, newest first; the next page begins before the last one's id.

    The other arguments are filters (``only``: by id); None matches every row.
    """
    conditions = ["true"]
    if state is not None:
        # Written out, not bound: only then does the planner see that a partial index contains exactly these rows.
        conditions.append(f"j.state = '{State(state).value}'")
    wanted = {"queue": queue, "action": action, "group_name": group, "key": key, "error_group": error_group}
    conditions += [f"j.{name} = %({name})s::text" for name, value in wanted.items() if value is not None]
    if only is not None:
        conditions.append("j.id = ANY (%(only)s::bigint[])")
    if before_id is not None:
        conditions.append("j.id < %(before)s::bigint")
    cur.execute(
        _PAGE.replace("/* conditions */", " AND ".join(conditions)),
        {**wanted, "before": before_id, "limit": limit, "only": None if only is None else list(only)},
    )
    return [_row(found) for found in fetch_all(cur)]


def job(cur: Cursor, id: int) -> tuple[Row, str, list[Attempt]] | None:  # noqa: A002
    """Return one row, its payload (JSON) and its attempts, oldest first, or None."""
    cur.execute(_JOB, {"id": id})
    found = fetch_one(cur)
    return None if found is None else (_row(found), found.payload, of_job(cur, id))


def _row(found: Any) -> Row:
    values = {name: getattr(found, name) for name in _COLUMNS}
    values["uuid"] = None if found.uuid is None else UUID(found.uuid)
    values["state"] = State(found.state)
    for moment in ("created_at", "run_at", "ended_at", "started_at"):
        values[moment] = aware(values[moment])
    return Row(**values)
