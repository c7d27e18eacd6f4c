"""A job's INSERT and its links to records: one statement for one job, two for any number of jobs about one model."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

from sidestream.errors import InvalidJob
from sidestream.job.codec import encode_payload
from sidestream.job.job import DEFAULT_PRIORITY, Job
from sidestream.store import unique
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor
from sidestream.store.job_row import JobRow

CONTEXT_LIMIT = 16 * 1024
"""Most bytes (UTF-8) of a job's context; with the limits of its arguments and of its other texts, a row is bounded."""
_COLUMNS = {
    "action": "text",
    "queue": "text",
    "key": "text",
    "payload": "text",
    "run_at": "timestamp",
    "company_id": "integer",
    "user_id": "integer",
    "context": "text",
    "priority": "smallint",
    "group_name": "text",
    "limit_key": "text",
    "unique_key": "text",
    "unique_until": "text",
    "unique_seconds": "float8",
    "unique_conflict": "text",
    "expires_at": "timestamp",
    "requested_by": "integer",
}
_DEFAULTS = {"run_at": UTC_NOW, "priority": str(DEFAULT_PRIORITY)}
"""What stands for "none" where only some jobs of a call have a value."""
_INSERT_RECORDS = """
    INSERT INTO sidestream_job_record (model, record_id, job_id)
    SELECT %(model)s::text, * FROM unnest(%(records)s::integer[], %(jobs)s::bigint[])"""
_UNLESS_LINKED = " ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING"
"""Only for rows that may have been there before: it costs a third more. In order: two of them must not deadlock."""
_INSERT_DONE = """
    INSERT INTO sidestream_job (uuid, action, queue, key, payload, state, started_at, ended_at, attempts, crashes,
                                priority, group_name, limit_key)
    VALUES (%(uuid)s::uuid, %(action)s::text, %(queue)s::text, %(key)s::text, %(payload)s::text, 'done',
            transaction_timestamp() AT TIME ZONE 'UTC', clock_timestamp() AT TIME ZONE 'UTC', %(attempts)s::integer,
            %(crashes)s::integer, %(priority)s::smallint, %(group)s::text, %(limit)s::text)
    ON CONFLICT (uuid) WHERE uuid IS NOT NULL DO NOTHING RETURNING id"""


def insert(cur: Cursor, jobs: Sequence[Job]) -> list[JobRow]:
    """Insert ``jobs`` as pending rows and return them in the same order; those that are new have ascending ids.

    Waits for nobody, as no constraint here is shared with another transaction's rows (C9); but for one that links the
    same record to the same row that was there already. They are gone with the caller's
    transaction or savepoint, and so may be any reference made of them. A job with a :class:`~sidestream.job.job.Unique`
    may find a row that is there already: that one is returned, with ``existed`` set (see :mod:`~.unique`).

    Raises:
        InvalidJob: An argument is not JSON or too large, or a moment has no time zone; nothing was inserted.
    """
    if not jobs:
        return []
    rows = [_row(job) for job in jobs]
    new: Sequence[int] = range(len(jobs))
    if not any(job.unique is not None for job in jobs):
        stored = _insert(cur, jobs, rows)
    else:
        plan = unique.look_up(cur, jobs, rows)
        new = plan.new
        fresh = _insert(cur, [jobs[at] for at in new], [rows[at] for at in new]) if new else []
        stored = unique.carry_out(cur, plan, fresh)
    linked = jobs[new[0]] if len(new) == 1 else None  # by its own statement
    links: dict[str, tuple[list[int], list[int]]] = {}
    for row, job in zip(stored, jobs, strict=True):
        if job.records is not None and job.records[1] and job is not linked:
            model, about = job.records
            records, ids = links.setdefault(model, ([], []))
            once = about if len(about) == 1 else list(dict.fromkeys(about))
            records += once
            ids += [row.id] * len(once)
    statement = _INSERT_RECORDS if len(new) == len(jobs) else _INSERT_RECORDS + _UNLESS_LINKED
    for model, (records, ids) in sorted(links.items()):
        cur.execute(statement, {"model": model, "records": records, "jobs": ids})
    return stored


def insert_done(cur: Cursor, job: Job) -> bool:
    """Write the direct ``job`` as done, in the transaction of its effect; False when its uuid is there already.

    The row is the inbox that keeps promise 3 for direct jobs: on False, roll the effect back. Waits for a transaction
    that is writing the same uuid; at REPEATABLE READ the driver then raises 40001.
    """
    if job.uuid is None:
        raise InvalidJob(
            f"A job of action {job.action!r} was to be written as a direct one without a uuid; give it one."
        )
    cur.execute(
        _INSERT_DONE,
        {
            "uuid": str(job.uuid),
            "action": job.action,
            "queue": job.queue,
            "key": job.key,
            "payload": encode_payload(job.args, job.kwargs),
            "attempts": job.attempts,
            "crashes": job.crashes,
            "priority": job.priority,
            "group": job.group,
            "limit": job.limit,
        },
    )
    return cur.fetchone() is not None


def _insert(cur: Cursor, jobs: Sequence[Job], rows: Sequence[tuple[Any, ...]]) -> list[JobRow]:
    shared: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=True):
        if name == "payload" or column.count(column[0]) < len(rows):
            differing[name] = list(column)
        elif column[0] is not None:
            shared[name] = column[0]
    if len(rows) == 1:
        statement, links = _insert_one((*shared, "payload"), jobs[0].records)
        cur.execute(statement, {**shared, "payload": differing["payload"][0], **links})
    else:
        cur.execute(_insert_many(tuple(shared), tuple(differing)), {**shared, **differing})
    return [
        JobRow(
            row_id,
            job.action,
            job.queue,
            row[2],
            _aware(run_at),
            priority=job.priority,
            group=job.group,
            limit=job.limit,
        )
        for (row_id, run_at), job, row in zip(cur.fetchall(), jobs, rows, strict=True)
    ]


@lru_cache(maxsize=16)
def _aware(run_at: datetime) -> datetime:
    """Return a row's moment with its time zone; nearly all jobs of a call are due at once, so it is one moment."""
    return run_at.replace(tzinfo=UTC)


def _insert_one(
    names: tuple[str, ...], records: tuple[str, tuple[int, ...]] | None
) -> tuple[str, dict[str, str | int | list[int]]]:
    """Return the statement for one job that has these columns, and what it needs for the job's links to records."""
    if records is None or not records[1]:
        return _insert_alone(names), {}
    model, ids = records
    if len(ids) == 1:
        return _insert_linked(names, "%(record)s::integer"), {"model": model, "record": ids[0]}
    return _insert_linked(names, "unnest(%(record)s::integer[])"), {"model": model, "record": [*dict.fromkeys(ids)]}


@cache
def _insert_alone(names: tuple[str, ...]) -> str:
    """Return the statement for one job that has these columns; the others have their defaults."""
    values = ", ".join(f"%({name})s::{_COLUMNS[name]}" for name in names)
    return f"INSERT INTO sidestream_job ({', '.join(names)}) VALUES ({values}) RETURNING id, run_at"


@cache
def _insert_linked(names: tuple[str, ...], record: str) -> str:
    """Return the same with its links to records, which saves the person who waits for it a round trip."""
    return f"""
        WITH job AS ({_insert_alone(names)}),
        linked AS (INSERT INTO sidestream_job_record (model, record_id, job_id)
                   SELECT %(model)s::text, {record}, id FROM job)
        SELECT id, run_at FROM job"""


@cache
def _insert_many(shared: tuple[str, ...], differing: tuple[str, ...]) -> str:
    """Return the statement for any number of jobs, in their order, which becomes the order of their ids.

    What all of them have alike is sent once, what none of them has is not sent: of 10,000 jobs of one call that is
    nearly everything.
    """
    values = [f"%({name})s::{_COLUMNS[name]}" for name in shared]
    values += [f"coalesce(new.{name}, {_DEFAULTS[name]})" if name in _DEFAULTS else f"new.{name}" for name in differing]
    arrays = ", ".join(f"%({name})s::{_COLUMNS[name]}[]" for name in differing)
    return f"""
        INSERT INTO sidestream_job ({", ".join((*shared, *differing))}) SELECT {", ".join(values)}
        FROM unnest({arrays}) WITH ORDINALITY AS new ({", ".join(differing)}, place)
        ORDER BY place RETURNING id, run_at"""


def _row(job: Job) -> tuple[Any, ...]:
    """Return the values of :data:`_COLUMNS`."""
    wanted = job.unique
    return (
        job.action,
        job.queue,
        unique.line_of(job),
        encode_payload(job.args, job.kwargs),
        _naive_utc(job, "run_at", job.run_at),
        job.company_id,
        job.user_id,
        _bounded_context(job),
        None if job.priority == DEFAULT_PRIORITY else job.priority,
        job.group,
        job.limit,
        None if wanted is None else wanted.key,
        None if wanted is None else wanted.until,
        None if wanted is None or wanted.until != "window" else float(wanted.seconds),
        None if wanted is None else wanted.on_conflict,
        _naive_utc(job, "expires_at", job.expires_at),
        job.requested_by,
    )


def _bounded_context(job: Job) -> str | None:
    if job.context is not None and len(job.context.encode()) > CONTEXT_LIMIT:
        raise InvalidJob(
            f"The context of a job of action {job.action!r} is {len(job.context.encode())} bytes, more than "
            f"{CONTEXT_LIMIT}; enqueue it with fewer companies."
        )
    return job.context


def _naive_utc(job: Job, name: str, moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidJob(
            f"{name}={moment.isoformat()} of a job of action {job.action!r} has no time zone; make it aware."
        )
    return moment.astimezone(UTC).replace(tzinfo=None)
