"""The write side: a job's one INSERT, its one "done", and every write that is not done."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sidestream.errors import InvalidJob, LockLost
from sidestream.job.codec import encode_payload, to_ms
from sidestream.job.job import Job
from sidestream.job.reference import row_reference
from sidestream.store.cursor import Cursor
from sidestream.store.schema import Database
from sidestream.store.written import UTC_NOW, Written, compare_and_set, storable, write

__all__ = [
    "AGE_CAP",
    "StoredJob",
    "Written",
    "bury",
    "count_releases",
    "crash",
    "fail",
    "finish",
    "insert",
    "insert_done",
    "suspect",
]

AGE_CAP = 24 * 3600.0
"""Seconds after its first counted release for which a job may be handed back again and again."""
CHARGED = -1
"""In ``suspects``: it killed its host, which is charged already, and goes on running alone."""
AGE_CAP_FROM = 10
"""Releases below which the age does not count: waiting a day for one's turn is no fault."""

# One statement and one round trip for any number, in the order of the jobs, which becomes the order of their ids.
_INSERT = f"""
    INSERT INTO sidestream_job (action, queue, key, payload, run_at, company_id, user_id, context)
    SELECT action, queue, key, payload, coalesce(run_at, {UTC_NOW}), company_id, user_id, context
    FROM unnest(%(actions)s::text[], %(queues)s::text[], %(keys)s::text[], %(payloads)s::text[],
                %(run_ats)s::timestamp[], %(companies)s::integer[], %(users)s::integer[], %(contexts)s::text[])
         WITH ORDINALITY AS new (action, queue, key, payload, run_at, company_id, user_id, context, place)
    ORDER BY place RETURNING id, run_at"""
_INSERT_RECORDS = """
    INSERT INTO sidestream_job_record (model, record_id, job_id)
    SELECT DISTINCT * FROM unnest(%(models)s::text[], %(records)s::integer[], %(jobs)s::bigint[])"""
_INSERT_DONE = """
    INSERT INTO sidestream_job (uuid, action, queue, key, payload, state, ended_at, attempts, crashes)
    VALUES (%(uuid)s::uuid, %(action)s::text, %(queue)s::text, %(key)s::text, %(payload)s::text, 'done',
            clock_timestamp() AT TIME ZONE 'UTC', %(attempts)s::integer, %(crashes)s::integer)
    ON CONFLICT (uuid) WHERE uuid IS NOT NULL DO NOTHING RETURNING id"""
# The second condition is what D3 rests on: the lock is ours exactly as long as the transaction that took it.
_FINISH = """
    UPDATE sidestream_job
    SET state = 'done', ended_at = clock_timestamp() AT TIME ZONE 'UTC', error = NULL, reason = NULL
    WHERE id = %(id)s::bigint AND state = 'open' AND current_setting('sidestream.job', true) = %(id)s::bigint::text
    RETURNING id"""

_AS_SEEN = "state = 'open' AND attempts = %(seen)s::integer"
_STARTS_AGAIN = "suspects = 0, releases = 0, released_since = NULL, reason = NULL, error = %(error)s::text"
_FAIL = compare_and_set(
    f"attempts = j.attempts + 1, run_at = {UTC_NOW} + %(delay)s::float8 * interval '1 second', {_STARTS_AGAIN}",
    _AS_SEEN,
)
_BURY = compare_and_set(
    f"state = 'dead', ended_at = {UTC_NOW}, attempts = j.attempts + %(charge)s::integer, error = %(error)s::text",
    _AS_SEEN,
)
_CRASHES = "j.crashes + 1 + greatest(j.suspects, 0)"
_CRASH = compare_and_set(
    f"""attempts = j.attempts + 1, crashes = {_CRASHES},
        state = CASE WHEN {_CRASHES} >= %(max)s::integer THEN 'dead' ELSE 'open' END,
        ended_at = CASE WHEN {_CRASHES} >= %(max)s::integer THEN {UTC_NOW} END,
        {_STARTS_AGAIN.replace("suspects = 0", "suspects = %(suspects)s::integer")}""",
    _AS_SEEN,
)
_SUSPECT = compare_and_set("suspects = greatest(j.suspects, 0) + 1", _AS_SEEN)
# The broker's count begins again when Redis was emptied: a smaller one than the row's is added, in the steps in which
# it is reported. A job that is not due is not waiting, so its clock does not run.
_COUNTED = """CASE WHEN %(releases)s::integer >= j.releases THEN %(releases)s::integer
              ELSE j.releases + least(%(releases)s::integer, 10) END"""
_SPENT = f"""(j.run_at <= {UTC_NOW} AND ({_COUNTED} >= %(cap)s::integer OR ({_COUNTED} >= {AGE_CAP_FROM}
             AND j.released_since <= {UTC_NOW} - %(age)s::float8 * interval '1 second')))"""
_COUNT_RELEASES = compare_and_set(
    f"""releases = CASE WHEN j.run_at > {UTC_NOW} THEN 0 ELSE {_COUNTED} END,
        released_since = CASE WHEN j.run_at > {UTC_NOW} THEN NULL ELSE coalesce(j.released_since, {UTC_NOW}) END,
        reason = %(reason)s::text,
        state = CASE WHEN {_SPENT} THEN 'dead' ELSE 'open' END,
        ended_at = CASE WHEN {_SPENT} THEN {UTC_NOW} END,
        error = CASE WHEN {_SPENT}
                THEN format('It was handed back %%s times since %%s UTC without being run; the last reason: %%s',
                            {_COUNTED}, to_char(coalesce(j.released_since, {UTC_NOW}), 'YYYY-MM-DD HH24:MI:SS'),
                            %(reason)s::text)
                ELSE j.error END""",
    "state = 'open'",
)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """An open row, as far as a broker has to know it; a new one exists once its transaction commits."""

    id: int
    action: str
    queue: str
    key: str | None
    #: When it is due; aware, UTC.
    run_at: datetime
    #: Starts that failed or crashed.
    attempts: int = 0

    @property
    def due_ms(self) -> int:
        """Unix milliseconds at which it is due."""
        return to_ms(self.run_at)

    def reference(self, database: Database) -> bytes:
        """Return the packed reference to this row of ``database``."""
        return row_reference(database.tag, self.id, self.action, self.key).pack()


def insert(cur: Cursor, jobs: Sequence[Job]) -> list[StoredJob]:
    """Insert ``jobs`` as open rows and return them in the same order, with ascending ids.

    Waits for nobody: no constraint here is shared with another transaction's rows (C9). They are gone with the caller's
    transaction or savepoint, and so may be any reference made of them.

    Raises:
        InvalidJob: An argument is not JSON or too large, or ``run_at`` has no time zone; nothing was inserted.
    """
    if not jobs:
        return []
    parameters: dict[str, Any] = {
        "actions": [job.action for job in jobs],
        "queues": [job.queue for job in jobs],
        "keys": [job.key for job in jobs],
        "payloads": [encode_payload(job.args, job.kwargs) for job in jobs],
        "run_ats": [_naive_utc(job) for job in jobs],
        "companies": [job.company_id for job in jobs],
        "users": [job.user_id for job in jobs],
        "contexts": [job.context for job in jobs],
    }
    cur.execute(_INSERT, parameters)
    stored = [
        StoredJob(row_id, job.action, job.queue, job.key, run_at.replace(tzinfo=UTC))
        for (row_id, run_at), job in zip(cur.fetchall(), jobs, strict=True)
    ]
    links = [
        (job.records[0], record, row.id)
        for row, job in zip(stored, jobs, strict=True)
        if job.records is not None
        for record in job.records[1]
    ]
    if links:
        models, records, ids = (list(column) for column in zip(*links, strict=True))
        cur.execute(_INSERT_RECORDS, {"models": models, "records": records, "jobs": ids})
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
        },
    )
    return cur.fetchone() is not None


def finish(cur: Cursor, id: int) -> None:  # noqa: A002
    """Write "done" in the transaction in which :func:`~sidestream.store.opening.open_job` locked the row (design D3).

    Raises:
        LockLost: That transaction has ended, or the row is not open: roll back, nothing of this may be committed.
    """
    cur.execute(_FINISH, {"id": id})
    if cur.fetchone() is None:
        raise LockLost(
            f"Job {id} cannot be finished: the transaction that opened it has ended, or its row is no longer open; "
            "what was written since was not committed."
        )


def fail(cur: Cursor, id: int, attempts_seen: int, delay_s: float, error: str) -> Written:  # noqa: A002
    """Charge a failed attempt; the job is due again in ``delay_s`` seconds and keeps its place in its key's line."""
    parameters = {"id": id, "seen": attempts_seen, "delay": delay_s, "error": storable(error)}
    return write(cur, _FAIL, parameters, attempts_seen=attempts_seen)


def bury(
    cur: Cursor,
    id: int,  # noqa: A002
    attempts_seen: int,
    error: str,
    *,
    charge_attempt: bool = True,
) -> Written:
    """End the job as dead; its key is free."""
    parameters = {"id": id, "seen": attempts_seen, "charge": int(charge_attempt), "error": storable(error)}
    return write(cur, _BURY, parameters, attempts_seen=attempts_seen)


def crash(
    cur: Cursor,
    id: int,  # noqa: A002
    attempts_seen: int,
    error: str,
    max_crashes: int,
    *,
    with_host: bool = False,
) -> Written:
    """Charge an attempt that killed its process, and what it was suspected of before; dead at ``max_crashes``.

    ``with_host``: it took its supervisor along. It stays a suspect, so it runs alone again and is charged at once if it
    does so a third time.
    """
    parameters = {
        "id": id,
        "seen": attempts_seen,
        "max": max_crashes,
        "suspects": CHARGED if with_host else 0,
        "error": storable(error),
    }
    return write(cur, _CRASH, parameters, attempts_seen=attempts_seen)


def suspect(cur: Cursor, id: int, attempts_seen: int) -> Written:  # noqa: A002
    """Note that it ran when its host or its supervisor died: no attempt is charged, but the next one runs alone."""
    return write(cur, _SUSPECT, {"id": id, "seen": attempts_seen}, attempts_seen=attempts_seen)


def count_releases(
    cur: Cursor,
    id: int,  # noqa: A002
    releases: int,
    reason: str,
    cap: int,
    *,
    age_cap_s: float = AGE_CAP,
) -> Written:
    """Note that the job was handed back for the ``releases``-th time since its last start, and why.

    Report the first one and then every tenth. The job ends as dead at ``cap`` releases, or at ``AGE_CAP_FROM`` of them
    when the first was ``age_cap_s`` seconds ago; a job that is not due starts its count anew.
    """
    parameters = {"id": id, "releases": releases, "reason": storable(reason), "cap": cap, "age": age_cap_s}
    return write(cur, _COUNT_RELEASES, parameters)


def _naive_utc(job: Job) -> datetime | None:
    if job.run_at is None:
        return None
    if job.run_at.tzinfo is None:
        raise InvalidJob(
            f"run_at={job.run_at.isoformat()} of a job of action {job.action!r} has no time zone; make it aware."
        )
    return job.run_at.astimezone(UTC).replace(tzinfo=None)
