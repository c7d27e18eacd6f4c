"""Insert jobs and their links to records, with one or two statements."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sidestream.errors import InvalidJob
from sidestream.job.codec import encode_payload
from sidestream.job.job import DEFAULT_PRIORITY, Job
from sidestream.store import unique
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, aware, fetch_all, naive
from sidestream.store.job_row import JobRow

CONTEXT_LIMIT = 16 * 1024
"""Largest size of a job's context in bytes (UTF-8); with the limits of its other values, it bounds a row."""
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
"""The type of each column that an INSERT writes."""
_DEFAULTS = {"run_at": UTC_NOW, "priority": str(DEFAULT_PRIORITY)}
"""The value of a column where only some jobs of a call have one."""
# Links rows to records of one model. Locks nothing.
_INSERT_RECORDS = """
    INSERT INTO sidestream_job_record (model, record_id, job_id)
    SELECT %(model)s::text, * FROM unnest(%(records)s::integer[], %(jobs)s::bigint[])"""
_UNLESS_LINKED = " ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING"
"""For rows that may be linked already; it costs a third more. The order prevents a deadlock of two such statements."""
# Writes a direct job as done and returns its id; no row when its uuid exists. Waits for a transaction that writes the
# same uuid. Index: sidestream_job_uuid.
_INSERT_DONE = """
    INSERT INTO sidestream_job (uuid, action, queue, key, payload, state, started_at, ended_at, attempts, crashes,
                                priority, group_name, limit_key)
    VALUES (%(uuid)s::uuid, %(action)s::text, %(queue)s::text, %(key)s::text, %(payload)s::text, 'done',
            transaction_timestamp() AT TIME ZONE 'UTC', clock_timestamp() AT TIME ZONE 'UTC', %(attempts)s::integer,
            %(crashes)s::integer, %(priority)s::smallint, %(group)s::text, %(limit)s::text)
    ON CONFLICT (uuid) WHERE uuid IS NOT NULL DO NOTHING RETURNING id"""


def insert(cur: Cursor, jobs: Sequence[Job]) -> list[JobRow]:
    """Insert ``jobs`` as pending rows with ascending ids; return them in the same order.

    It does not wait for other transactions, except for one that links the same record to the same existing row. A
    rollback of the caller's transaction or savepoint removes the rows. A job with a
    :class:`~sidestream.job.job.Unique` may have a duplicate: that row is returned, with ``existed`` set (see
    :mod:`~.unique`).

    Raises:
        InvalidJob: An argument is not JSON or too large, or a time has no time zone; nothing was inserted.
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
    linked = jobs[new[0]] if len(new) == 1 else None  # its INSERT wrote the links
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
    """Insert a direct job as done, in the transaction of its effect; False if its row exists.

    The row makes the effect of a direct job happen once (promise 3): on False, roll the effect back. It waits for a
    transaction that is writing the same uuid; at REPEATABLE READ the driver then raises 40001.
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


def _insert(cur: Cursor, jobs: Sequence[Job], rows: Sequence[unique.Values]) -> list[JobRow]:
    shared: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    for name, column in zip(unique.Values._fields, zip(*rows, strict=True), strict=True):
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
            inserted.id,
            job.action,
            job.queue,
            row.key,
            aware(inserted.run_at),
            priority=job.priority,
            group=job.group,
            limit=job.limit,
        )
        for inserted, job, row in zip(fetch_all(cur), jobs, rows, strict=True)
    ]


def _insert_one(
    names: tuple[str, ...], records: tuple[str, tuple[int, ...]] | None
) -> tuple[str, dict[str, str | int | list[int]]]:
    """Return the statement for one job, and the parameters for its links to records."""
    if records is None or not records[1]:
        return _insert_alone(names), {}
    model, ids = records
    if len(ids) == 1:
        return _insert_linked(names, "%(record)s::integer"), {"model": model, "record": ids[0]}
    return _insert_linked(names, "unnest(%(record)s::integer[])"), {"model": model, "record": [*dict.fromkeys(ids)]}


@cache
def _insert_alone(names: tuple[str, ...]) -> str:
    """Return the statement for one job with these columns; the others have their defaults."""
    values = ", ".join(f"%({name})s::{_COLUMNS[name]}" for name in names)
    return f"INSERT INTO sidestream_job ({', '.join(names)}) VALUES ({values}) RETURNING id, run_at"


@cache
def _insert_linked(names: tuple[str, ...], record: str) -> str:
    """Return the statement that also links the job to records, to save a round trip."""
    return f"""
        WITH job AS ({_insert_alone(names)}),
        linked AS (INSERT INTO sidestream_job_record (model, record_id, job_id)
                   SELECT %(model)s::text, {record}, id FROM job)
        SELECT id, run_at FROM job"""


@cache
def _insert_many(shared: tuple[str, ...], differing: tuple[str, ...]) -> str:
    """Return the statement for several jobs; the order of their ids is the order of the jobs.

    A value that all jobs share is sent once, and a value that no job has is not sent. For 10,000 jobs of one call that
    is nearly everything.
    """
    values = [f"%({name})s::{_COLUMNS[name]}" for name in shared]
    values += [f"coalesce(new.{name}, {_DEFAULTS[name]})" if name in _DEFAULTS else f"new.{name}" for name in differing]
    arrays = ", ".join(f"%({name})s::{_COLUMNS[name]}[]" for name in differing)
    return f"""
        INSERT INTO sidestream_job ({", ".join((*shared, *differing))}) SELECT {", ".join(values)}
        FROM unnest({arrays}) WITH ORDINALITY AS new ({", ".join(differing)}, place)
        ORDER BY place RETURNING id, run_at"""


def _row(job: Job) -> unique.Values:
    wanted = job.unique
    return unique.Values(
        action=job.action,
        queue=job.queue,
        key=unique.key_of(job),
        payload=encode_payload(job.args, job.kwargs),
        run_at=_naive_utc(job, "run_at", job.run_at),
        company_id=job.company_id,
        user_id=job.user_id,
        context=_bounded_context(job),
        priority=None if job.priority == DEFAULT_PRIORITY else job.priority,
        group_name=job.group,
        limit_key=job.limit,
        unique_key=None if wanted is None else wanted.key,
        unique_until=None if wanted is None else wanted.until,
        unique_seconds=None if wanted is None or wanted.until != "window" else float(wanted.seconds),
        unique_conflict=None if wanted is None else wanted.on_conflict,
        expires_at=_naive_utc(job, "expires_at", job.expires_at),
        requested_by=job.requested_by,
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
    return naive(moment)
