"""Find duplicates when unique jobs are inserted, and return, replace or cancel them.

No call waits for another transaction. It looks up what the caller's snapshot shows and skips locked rows. Duplicates of
overlapping transactions, which could not see each other, are resolved when one of them starts (see
:mod:`~sidestream.store.acquire`). The complete table of strategies, states and situations:
docs/explanation/uniqueness.md.
"""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from sidestream.job.job import DEFAULT_PRIORITY, Job, Unique
from sidestream.job.reason import Reason, ReasonCode
from sidestream.store.adapter import SERIALIZATION_FAILURE, sqlstate
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, fetch_all, fetch_ids, fetch_one
from sidestream.store.diagnosis import pending_among
from sidestream.store.job_row import OF_J, JobRow, read_job_row
from sidestream.store.locks import NOT_BETWEEN, running_between

PENDING_FEW = 10
"""Number of pending duplicates that are examined; only overlapping transactions create more than one."""
KEPT_FEW = 50
"""Number of the newest rows with a window that are examined."""

# Returns the duplicates of each wanted key, by place, and in each row whether the snapshot may be older than now.
# Index: sidestream_job_unique, or sidestream_job_unique_kept for a window. Only jobs with a window count for a
# window, and a cancelled one does not.
_LOOK_UP = f"""
    SELECT wanted.place, j.pending, {OF_J}, guarded FROM unnest(%(keys)s::text[], %(windows)s::float8[])
        WITH ORDINALITY AS wanted (key, seconds, place)
    CROSS JOIN (SELECT current_setting('transaction_isolation') <> 'read committed'
                       AND transaction_timestamp() < statement_timestamp() AS guarded) here
    CROSS JOIN LATERAL (
        (SELECT true AS pending, j.* FROM sidestream_job j
         WHERE wanted.seconds IS NULL AND j.state = 'pending' AND j.unique_key = wanted.key
         ORDER BY j.id LIMIT {PENDING_FEW})
        UNION ALL
        (SELECT state = 'pending', newest.* FROM (
            SELECT * FROM sidestream_job j
            WHERE wanted.seconds IS NOT NULL AND j.unique_key = wanted.key AND j.unique_until = 'window'
            ORDER BY j.id DESC LIMIT {KEPT_FEW}) newest
         WHERE state <> 'cancelled' AND created_at > {UTC_NOW} - wanted.seconds * interval '1 second')) j
    ORDER BY wanted.place, j.id"""
# Locks pending rows and returns their ids, skipping those of running jobs. Index: the primary key. At REPEATABLE READ
# it raises 40001 when a row changed after the snapshot.
_LOCK = f"""
    SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending' AND {NOT_BETWEEN}
    ORDER BY id FOR {{strength}} SKIP LOCKED"""
# A job that waits does not start before the caller's transaction ends, so that it sees what the caller wrote.
_SHARE = _LOCK.format(strength="SHARE")
_MINE = _LOCK.format(strength="NO KEY UPDATE")
# Writes a new job's values to a pending row that the caller has locked, and returns it. Index: the primary key.
_TAKE_OVER = f"""
    UPDATE sidestream_job j SET payload = %(payload)s::text, run_at = coalesce(%(run_at)s::timestamp, {UTC_NOW}),
        company_id = %(company_id)s::integer, user_id = %(user_id)s::integer, context = %(context)s::text,
        priority = %(priority)s::smallint, unique_until = %(unique_until)s::text,
        unique_seconds = %(unique_seconds)s::float8, unique_conflict = %(unique_conflict)s::text,
        expires_at = %(expires_at)s::timestamp,
        requested_by = %(requested_by)s::integer
    WHERE id = %(id)s::bigint AND state = 'pending' RETURNING {OF_J}"""
# Cancels pending rows that the caller has locked. Index: the primary key.
_CANCEL = f"""
    UPDATE sidestream_job SET state = 'cancelled', ended_at = {UTC_NOW}, reason = %(reason)s::text
    WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending'"""


class Values(NamedTuple):
    """The columns that an INSERT writes; None leaves a column at its default."""

    action: str
    queue: str
    key: str | None
    #: JSON.
    payload: str
    #: Naive, UTC.
    run_at: datetime | None
    company_id: int | None
    user_id: int | None
    context: str | None
    priority: int | None
    group_name: str | None
    limit_key: str | None
    unique_key: str | None
    unique_until: str | None
    unique_seconds: float | None
    unique_conflict: str | None
    #: Naive, UTC.
    expires_at: datetime | None
    requested_by: int | None


@dataclass(frozen=True, slots=True)
class _Found:
    """A duplicate."""

    pending: bool
    job: JobRow


@dataclass(slots=True)
class Plan:
    """What happens to each job of one call."""

    jobs: Sequence[Job]
    rows: Sequence[Values]
    #: Positions of the jobs to insert.
    new: list[int] = field(default_factory=list)
    #: By position: the existing row that is returned for the job.
    answered: dict[int, JobRow] = field(default_factory=dict)
    #: By position: the position in the same call whose row is returned for the job.
    same_as: dict[int, int] = field(default_factory=dict)
    #: By position: rows to cancel once the new row has its id.
    replaced: dict[int, list[JobRow]] = field(default_factory=dict)


def key_of(job: Job) -> str | None:
    """Return the row's key; jobs that replace each other until done share one."""
    wanted = job.unique
    if job.key is not None or wanted is None or wanted.until == "started" or wanted.on_conflict == "return":
        return job.key
    return f"unique:{wanted.key}"


def look_up(cur: Cursor, jobs: Sequence[Job], rows: Sequence[Values]) -> Plan:
    """Decide what happens to each job; lock or take over waiting duplicates."""
    plan = Plan(jobs, rows)
    wanted = _within_call(plan)
    if not wanted:
        return plan
    found, guarded = _find(cur, wanted)
    if found:
        _decide(cur, plan, wanted, found, guarded=guarded)
    plan.new = [at for at in range(len(jobs)) if at not in plan.same_as and at not in plan.answered]
    return plan


def carry_out(cur: Cursor, plan: Plan, fresh: Sequence[JobRow]) -> list[JobRow]:
    """Cancel the rows that the ``fresh`` rows replace; return the row of each job of the call."""
    rows = dict(zip(plan.new, fresh, strict=True))
    for at, waiting in plan.replaced.items():
        rows[at] = _cancel(cur, waiting, rows[at])
    rows.update(plan.answered)
    for at, other in plan.same_as.items():
        rows[at] = replace(rows[other], existed=True, taken_over=False, replaced=())
    return [rows[at] for at in range(len(plan.jobs))]


def _cancel(cur: Cursor, waiting: Sequence[JobRow], by: JobRow) -> JobRow:
    """Cancel waiting rows that this session has locked; return ``by``, which replaces them."""
    cur.execute(
        _CANCEL, {"ids": [one.id for one in waiting], "reason": Reason(ReasonCode.REPLACED, {"by": by.id}).stored()}
    )
    return replace(by, replaced=tuple(waiting))


def _within_call(plan: Plan) -> dict[int, Unique]:
    """Resolve the duplicates within one call, and return the remaining uniques by position."""
    wanted: dict[int, Unique] = {}
    first: dict[str, int] = {}
    for at, job in enumerate(plan.jobs):
        if job.unique is None:
            continue
        before = first.get(job.unique.key)
        if before is None:
            first[job.unique.key], wanted[at] = at, job.unique
        elif job.unique.on_conflict == "return":
            plan.same_as[at] = before
        else:  # the earlier one waits, and was not even inserted yet
            for other, target in plan.same_as.items():
                if target == before:
                    plan.same_as[other] = at
            plan.same_as[before] = at
            del wanted[before]
            first[job.unique.key], wanted[at] = at, job.unique
    plan.new = [at for at in range(len(plan.jobs)) if at not in plan.same_as]
    return wanted


def _find(cur: Cursor, wanted: Mapping[int, Unique]) -> tuple[dict[int, list[_Found]], bool]:
    """Return the duplicates in the snapshot by position, and whether it may be outdated."""
    positions = list(wanted)
    uniques = [wanted[at] for at in positions]
    windows = [float(one.seconds) if one.until == "window" else None for one in uniques]
    cur.execute(_LOOK_UP, {"keys": [one.key for one in uniques], "windows": windows})
    found: dict[int, list[_Found]] = {}
    guarded = False
    for row in fetch_all(cur):
        guarded = row.guarded  # the same in every row
        found.setdefault(positions[row.place - 1], []).append(_Found(row.pending, read_job_row(row, existed=True)))
    return found, guarded


def _decide(
    cur: Cursor, plan: Plan, wanted: Mapping[int, Unique], found: Mapping[int, list[_Found]], *, guarded: bool
) -> None:
    returning = [at for at in found if wanted[at].on_conflict == "return"]
    others = [at for at in found if wanted[at].on_conflict != "return"]
    ids = [one.job.id for at in returning for one in found[at] if one.pending]
    waiting, gone = _lock(cur, _SHARE, ids, guarded=guarded)
    ids = [one.job.id for at in others for one in found[at] if one.pending]
    mine, gone_too = _lock(cur, _MINE, ids, guarded=guarded)
    gone |= gone_too
    held = waiting | mine
    if held:
        running = running_between(cur, held)  # one that got there this moment waits for its row
        waiting -= running
        mine -= running
    for at in returning:
        still = [one for one in found[at] if one.job.id not in gone]
        if wanted[at].until == "started":
            still = [one for one in still if one.job.id in waiting]
        if still:
            plan.answered[at] = still[0].job
    for at in others:
        still = [one for one in found[at] if one.job.id not in gone]
        ours = [one.job for one in still if one.job.id in mine]
        if any(one.pending for one in still):
            _replace(cur, plan, at, ours)
        elif still:  # it ended, and its window did not
            plan.answered[at] = still[-1].job


def _replace(cur: Cursor, plan: Plan, at: int, waiting: list[JobRow]) -> None:
    """Change the first waiting job, or cancel all waiting ones in favor of the new job."""
    job, row = plan.jobs[at], plan.rows[at]
    assert job.unique is not None
    if job.unique.on_conflict == "replace":
        fixed = (row.action, row.queue, row.key, job.group, job.limit)
        same = [one for one in waiting if (one.action, one.queue, one.key, one.group, one.limit) == fixed]
        if same:
            taken = _take_over(cur, same[0].id, row)
            if taken is not None:
                others = [one for one in waiting if one is not same[0]]
                plan.answered[at] = _cancel(cur, others, taken) if others else taken
                return
    if waiting:
        plan.replaced[at] = waiting


def _take_over(cur: Cursor, row_id: int, values: Values) -> JobRow | None:
    priority = DEFAULT_PRIORITY if values.priority is None else values.priority
    cur.execute(_TAKE_OVER, {**values._asdict(), "id": row_id, "priority": priority})
    found = fetch_one(cur)
    return None if found is None else replace(read_job_row(found, existed=True), taken_over=True)


def _lock(cur: Cursor, statement: str, ids: Iterable[int], *, guarded: bool) -> tuple[set[int], set[int]]:
    """Lock the pending rows of ``ids`` that are not locked; return them and changed ones."""
    wanted = sorted(set(ids))
    if not wanted:
        return set(), set()
    locked: set[int] = set()
    changed: set[int] = set()
    got = _try_lock(cur, statement, wanted, guarded=guarded)
    if got is not None:
        locked = got
    else:
        for one in wanted:
            got = _try_lock(cur, statement, [one], guarded=guarded)
            if got is None:
                changed.add(one)
            else:
                locked |= got
    passed_over = [one for one in wanted if one not in locked and one not in changed]
    if passed_over:  # a session holds them, or (at READ COMMITTED) they ended just now
        changed |= set(passed_over) - pending_among(cur, passed_over)
    return locked, changed


def _try_lock(cur: Cursor, statement: str, ids: list[int], *, guarded: bool) -> set[int] | None:
    """Return which rows were locked; None when one of them changed since the caller's snapshot.

    Its job may have ended: returning it could lose the new job, and raising 40001 would repeat the caller's whole
    transaction. The savepoint keeps the caller's transaction.
    """
    if not guarded:
        cur.execute(statement, {"ids": ids})
        return fetch_ids(cur)
    cur.execute("SAVEPOINT sidestream_unique")
    try:
        cur.execute(statement, {"ids": ids})
        got: set[int] | None = fetch_ids(cur)
    except Exception as error:
        if sqlstate(error) != SERIALIZATION_FAILURE:
            raise
        cur.execute("ROLLBACK TO SAVEPOINT sidestream_unique")
        got = None
    cur.execute("RELEASE SAVEPOINT sidestream_unique")
    return got
