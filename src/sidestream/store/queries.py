"""The read side: no statement here locks a row or waits for one."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sidestream.job.states import State
from sidestream.store.attempts import Attempt, of_job
from sidestream.store.candidates import LEVELS
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor
from sidestream.store.job_row import NAMES, OF_J, JobRow, read_job_row

CHUNK = 32_768
"""How many ids one chunk has; the same as :data:`sidestream.broker.protocol.CHUNK`."""
FEW = 20_000
"""Overdue rows up to which :func:`overdue` finds them by their time; of more, some are met soon in order of ids."""

# One that was started stands in its key's line however late it is due: without it, those behind it would be handed out.
_OPEN_IN_CHUNK = f"""
    SELECT {OF_J} FROM sidestream_job j
    WHERE j.state = 'pending' AND j.id > greatest(%(after)s::bigint, %(first)s::bigint - 1)
    AND j.id < %(first)s::bigint + {CHUNK} AND (j.run_at <= coalesce(%(until)s::timestamp, 'infinity')
        OR (j.key IS NOT NULL AND (j.attempts > 0 OR j.snoozes > 0)))"""
# Redis counts bits from each byte's most significant one, get_bit from its least significant one.
_UNPUBLISHED = f"""
    {_OPEN_IN_CHUNK}
    AND CASE WHEN j.id - %(first)s::bigint < length(%(known)s::bytea) * 8
        THEN get_bit(%(known)s::bytea, (j.id - %(first)s::bigint) # 7) = 0 ELSE true END
    ORDER BY j.id LIMIT %(limit)s::integer"""
# One index probe a chunk that has pending rows, however many rows are in it.
_OPEN_CHUNKS = f"""
    WITH RECURSIVE chunk AS (
        (SELECT id / {CHUNK} AS number FROM sidestream_job WHERE state = 'pending' ORDER BY id LIMIT 1)
        UNION ALL
        SELECT (SELECT id / {CHUNK} FROM sidestream_job
                WHERE state = 'pending' AND id >= (chunk.number + 1) * {CHUNK} ORDER BY id LIMIT 1)
        FROM chunk WHERE chunk.number IS NOT NULL)
    SELECT number FROM chunk WHERE number IS NOT NULL"""
# Looked up by their time, as most pending rows may wait for a later day; the first column says whether there are more.
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
            ORDER BY run_at LIMIT {FEW + 1}) due  -- ordered, so that the index is used for levels without rows, too
        LIMIT {FEW + 1}),
    found AS MATERIALIZED (SELECT * FROM few WHERE id > %(after)s::bigint ORDER BY id LIMIT %(limit)s::integer)
    SELECT (SELECT count(*) FROM few) > {FEW}, {OF_J}
    FROM (SELECT) always LEFT JOIN found j ON true
    ORDER BY j.id"""
_OVERDUE = f"""
    SELECT {OF_J} FROM sidestream_job j
    WHERE j.state = 'pending' AND j.id > %(after)s::bigint
    AND j.run_at < {UTC_NOW} - %(older)s::float8 * interval '1 second'
    ORDER BY j.id LIMIT %(limit)s::integer"""
_COUNTS = f"""
    SELECT queue, count(*) FILTER (WHERE state = 'pending' AND run_at <= {UTC_NOW}),
           count(*) FILTER (WHERE state = 'pending' AND run_at > {UTC_NOW} AND attempts = 0),
           count(*) FILTER (WHERE state = 'pending' AND run_at > {UTC_NOW} AND attempts > 0),
           count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state = 'cancelled')
    FROM (SELECT queue, state, run_at, attempts FROM sidestream_job WHERE state = 'pending'
          UNION ALL
          SELECT queue, state, run_at, attempts FROM sidestream_job WHERE state IN ('failed', 'cancelled')) counted
    GROUP BY queue ORDER BY queue"""
_SEEN = f"""
    j.id, j.uuid::text, j.action, j.queue, j.key, j.state, j.created_at, j.run_at, j.ended_at, j.attempts,
    j.forgiven, j.crashes, j.suspects, j.releases, j.error, j.reason, j.run_at <= {UTC_NOW},
    EXISTS (SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL),
    j.priority, j.group_name, j.limit_key, j.unique_key, j.snoozes, j.started_at, j.error_group"""


# From the starts, which are few, to their rows: most pending jobs have no attempt row.
_RUNNING = """
    SELECT j.id, j.action, j.queue, a.worker, a.slot, a.at
    FROM sidestream_attempt a JOIN sidestream_job j ON j.id = a.job_id AND j.state = 'pending'
    WHERE a.event = 'started'
    AND NOT EXISTS (SELECT FROM sidestream_attempt later WHERE later.job_id = a.job_id AND later.id > a.id)
    ORDER BY a.id LIMIT %(limit)s::integer"""


class Running(NamedTuple):
    """A job that a worker said to have started, and not to have ended."""

    id: int
    action: str
    queue: str
    worker: str
    slot: int
    #: Aware, UTC.
    at: datetime


class QueueCounts(NamedTuple):
    """How many rows of a queue are in which state; done ones are not counted, there may be millions."""

    queue: str
    #: Open and due.
    due: int
    #: Open, not due, never tried.
    scheduled: int
    #: Open, not due, tried before.
    retrying: int
    failed: int
    cancelled: int


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
    #: How many of them a person's retry wrote off.
    forgiven: int
    crashes: int
    suspects: int
    releases: int
    #: Of the last failure.
    error: str | None
    #: Of the last release that was counted.
    reason: str | None
    #: Whether ``run_at`` has come.
    due: bool
    #: Whether a person asked to cancel it and no worker has done so yet.
    cancelling: bool
    #: 0 (first) to 9.
    priority: int
    group: str | None
    limit: str | None
    unique: str | None
    #: Times that it put itself off.
    snoozes: int
    #: When the transaction that said "done" began; None before.
    started_at: datetime | None
    #: Of a failed job: what it shares with those of the like error.
    error_group: str | None


def open_in_chunk(cur: Cursor, chunk: int, until: datetime | None = None) -> list[JobRow]:
    """Return the pending rows with ids from ``chunk * CHUNK``, by id; ``until`` as in :func:`unpublished`."""
    cur.execute(f"{_OPEN_IN_CHUNK} ORDER BY j.id", {"first": chunk * CHUNK, "after": -1, "until": _naive(until)})
    return _stored(cur.fetchall())


def unpublished(
    cur: Cursor, chunk: int, known: bytes, after_id: int = 0, until: datetime | None = None, limit: int = 500
) -> list[JobRow]:
    """Return up to ``limit`` pending rows of the chunk whose bit in ``known`` is unset, with ids above ``after_id``.

    ``known`` is read from the broker *before* this (C1): most significant bit first, maybe shorter than the chunk.
    ``until``: only what is due by then (aware), or stands in a key's line because it was started before.
    """
    parameters = {"first": chunk * CHUNK, "after": after_id, "until": _naive(until), "known": known, "limit": limit}
    cur.execute(_UNPUBLISHED, parameters)
    return _stored(cur.fetchall())


def pending_chunks(cur: Cursor) -> list[int]:
    """Return the numbers of the chunks that have pending rows, ascending."""
    cur.execute(_OPEN_CHUNKS)
    return [number for (number,) in cur.fetchall()]


def overdue(cur: Cursor, older_than_s: float, after_id: int = 0, limit: int = 500) -> list[JobRow]:
    """Return up to ``limit`` pending rows due for over ``older_than_s`` seconds, with ids above ``after_id``, by id.

    Neither a million jobs that wait for a later day nor a million that are overdue make it slow.
    """
    parameters = {"older": older_than_s, "after": after_id, "limit": limit}
    cur.execute(_OVERDUE_AMONG_FEW, parameters)
    rows = cur.fetchall()
    if not rows[0][0]:
        return _found(rows)
    cur.execute(_OVERDUE, parameters)
    return _stored(cur.fetchall())


def counts(cur: Cursor) -> list[QueueCounts]:
    """Return the counts of every queue that has open, failed or cancelled rows, by name."""
    cur.execute(_COUNTS)
    return [QueueCounts(*row) for row in cur.fetchall()]


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

    The others narrow it down (``only``: to these ids); None means all.
    """
    conditions = ["true"]
    if state is not None:
        # CasResult out, not bound: only then does the planner see that a partial index has exactly these rows.
        conditions.append(f"j.state = '{State(state).value}'")
    wanted = {"queue": queue, "action": action, "group_name": group, "key": key, "error_group": error_group}
    conditions += [f"j.{name} = %({name})s::text" for name, value in wanted.items() if value is not None]
    if only is not None:
        conditions.append("j.id = ANY (%(only)s::bigint[])")
    if before_id is not None:
        conditions.append("j.id < %(before)s::bigint")
    cur.execute(
        f"SELECT {_SEEN} FROM sidestream_job j WHERE {' AND '.join(conditions)} "
        "ORDER BY j.id DESC LIMIT %(limit)s::integer",
        {**wanted, "before": before_id, "limit": limit, "only": None if only is None else list(only)},
    )
    return [_row(*row) for row in cur.fetchall()]


def running(cur: Cursor, limit: int = 1000) -> list[Running]:
    """Return up to ``limit`` pending jobs whose newest attempt row says that they were started, oldest start first.

    Workers write that row for jobs that run alone or for long; of the short ones the broker knows.
    """
    cur.execute(_RUNNING, {"limit": limit})
    return [
        Running(row_id, action, queue, worker, slot, at.replace(tzinfo=UTC))
        for row_id, action, queue, worker, slot, at in cur.fetchall()
    ]


def job(cur: Cursor, id: int) -> tuple[Row, str, list[Attempt]] | None:  # noqa: A002
    """Return one row, its payload (JSON) and its attempts, oldest first; None when it is missing."""
    cur.execute(f"SELECT payload, {_SEEN} FROM sidestream_job j WHERE j.id = %(id)s::bigint", {"id": id})
    found = cur.fetchone()
    if found is None:
        return None
    payload, *row = found
    return _row(*row), payload, of_job(cur, id)


def _found(rows: Sequence[Any]) -> list[JobRow]:
    """Return the jobs of an answer whose first column is about the whole of it, and alone when there are none."""
    return _stored([row for _, *row in rows if row[0] is not None])


def _stored(rows: Sequence[Any]) -> list[JobRow]:
    return [read_job_row(row) for row in rows]


def _row(*columns: Any) -> Row:
    row_id, uuid, action, queue, key, state, created_at, run_at, ended_at, *rest, started_at, shared = columns
    return Row(
        row_id,
        None if uuid is None else UUID(uuid),
        action,
        queue,
        key,
        State(state),
        created_at.replace(tzinfo=UTC),
        run_at.replace(tzinfo=UTC),
        _aware(ended_at),
        *(*rest, _aware(started_at), shared),
    )


def _aware(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
