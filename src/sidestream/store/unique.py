"""A job's unique: what is there already when it is inserted, and what a duplicate means when it starts.

Nobody waits for another's transaction (C9): what the caller's snapshot shows is looked up, rows that somebody has
locked are passed over, and what overlapping transactions could not see of each other is folded when it starts. The
whole table, strategy by state by situation: docs/explanation/uniqueness.md.
"""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sidestream.job.job import DEFAULT_PRIORITY, Job, Unique
from sidestream.job.reason import Reason, ReasonCode
from sidestream.store.adapter import SERIALIZATION_FAILURE, sqlstate
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor
from sidestream.store.job_row import OF_J, JobRow, read_job_row
from sidestream.store.locks import running_between

OPEN_FEW = 10
"""How many pending duplicates are looked at; more than one exists only between overlapping transactions."""
KEPT_FEW = 50
"""How many of the newest rows with a window are looked at."""

# Two look-ups, each by an index of its own. A window counts among the jobs that have one; a cancelled one frees it.
_LOOK_UP = f"""
    SELECT wanted.place, j.open, {OF_J}, guarded FROM unnest(%(keys)s::text[], %(windows)s::float8[])
        WITH ORDINALITY AS wanted (key, seconds, place)
    CROSS JOIN (SELECT current_setting('transaction_isolation') <> 'read committed'
                       AND transaction_timestamp() < statement_timestamp() AS guarded) here
    CROSS JOIN LATERAL (
        (SELECT true AS open, j.* FROM sidestream_job j
         WHERE wanted.seconds IS NULL AND j.state = 'pending' AND j.unique_key = wanted.key
         ORDER BY j.id LIMIT {OPEN_FEW})
        UNION ALL
        (SELECT state = 'pending', newest.* FROM (
            SELECT * FROM sidestream_job j
            WHERE wanted.seconds IS NOT NULL AND j.unique_key = wanted.key AND j.unique_until = 'window'
            ORDER BY j.id DESC LIMIT {KEPT_FEW}) newest
         WHERE state <> 'cancelled' AND created_at > {UTC_NOW} - wanted.seconds * interval '1 second')) j
    ORDER BY wanted.place, j.id"""
_LOCK = """
    SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending'
    ORDER BY id FOR {strength} SKIP LOCKED"""
# With it, a job that waits does not start before the caller's transaction ends, so that it sees what the caller wrote.
_SHARE = _LOCK.format(strength="SHARE")
_MINE = _LOCK.format(strength="NO KEY UPDATE")
_STILL_PENDING = "SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending'"
_TAKE_OVER = f"""
    UPDATE sidestream_job j SET payload = %(payload)s::text, run_at = coalesce(%(run_at)s::timestamp, {UTC_NOW}),
        company_id = %(company_id)s::integer, user_id = %(user_id)s::integer, context = %(context)s::text,
        priority = %(priority)s::smallint, unique_until = %(until)s::text, unique_seconds = %(seconds)s::float8,
        unique_conflict = %(conflict)s::text, expires_at = %(expires_at)s::timestamp,
        requested_by = %(requested_by)s::integer
    WHERE id = %(id)s::bigint AND state = 'pending' RETURNING {OF_J}"""
_CANCEL = f"""
    UPDATE sidestream_job SET state = 'cancelled', ended_at = {UTC_NOW}, reason = %(reason)s::text
    WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending'"""


@dataclass(frozen=True, slots=True)
class _Found:
    """A row with the same unique."""

    open: bool
    job: JobRow


@dataclass(slots=True)
class Plan:
    """What becomes of each job of one call."""

    jobs: Sequence[Job]
    rows: Sequence[tuple[Any, ...]]
    #: Positions of the jobs to insert.
    new: list[int] = field(default_factory=list)
    #: By position: the row that answers it.
    answered: dict[int, JobRow] = field(default_factory=dict)
    #: By position: the earlier position, or the later one that replaces it, whose row is its answer.
    same_as: dict[int, int] = field(default_factory=dict)
    #: By position: rows to cancel once the new one has its id.
    replaced: dict[int, list[JobRow]] = field(default_factory=dict)


def line_of(job: Job) -> str | None:
    """Return the key that the row gets: those that replace each other until they are done run one after the other."""
    wanted = job.unique
    if job.key is not None or wanted is None or wanted.until == "started" or wanted.on_conflict == "return":
        return job.key
    return f"unique:{wanted.key}"


def look_up(cur: Cursor, jobs: Sequence[Job], rows: Sequence[tuple[Any, ...]]) -> Plan:
    """Decide what becomes of each job; rows that wait are locked or taken over."""
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
    """Cancel what the ``fresh`` rows (of ``plan.new``) replace, and return the row of each job of the call."""
    rows = dict(zip(plan.new, fresh, strict=True))
    for at, waiting in plan.replaced.items():
        rows[at] = _cancel(cur, waiting, rows[at])
    rows.update(plan.answered)
    for at, other in plan.same_as.items():
        rows[at] = replace(rows[other], existed=True, taken_over=False, replaced=())
    return [rows[at] for at in range(len(plan.jobs))]


def _cancel(cur: Cursor, waiting: Sequence[JobRow], by: JobRow) -> JobRow:
    """Cancel rows that wait and that we have locked; return ``by``, which replaces them."""
    cur.execute(
        _CANCEL, {"ids": [one.id for one in waiting], "reason": Reason(ReasonCode.REPLACED, {"by": by.id}).stored()}
    )
    return replace(by, replaced=tuple(waiting))


def _within_call(plan: Plan) -> dict[int, Unique]:
    """Fold the duplicates of one call, and return what is left by position."""
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
    """Return the rows that the snapshot shows, by position, and whether it may be older than this moment."""
    positions = list(wanted)
    uniques = [wanted[at] for at in positions]
    windows = [float(one.seconds) if one.until == "window" else None for one in uniques]
    cur.execute(_LOOK_UP, {"keys": [one.key for one in uniques], "windows": windows})
    found: dict[int, list[_Found]] = {}
    guarded = False
    for place, is_open, *columns, guarded in cur.fetchall():  # noqa: B007  # the same in every row
        found.setdefault(positions[place - 1], []).append(_Found(is_open, read_job_row(columns, existed=True)))
    return found, guarded


def _decide(
    cur: Cursor, plan: Plan, wanted: Mapping[int, Unique], found: Mapping[int, list[_Found]], *, guarded: bool
) -> None:
    returning = [at for at in found if wanted[at].on_conflict == "return"]
    others = [at for at in found if wanted[at].on_conflict != "return"]
    # A job between two of its transactions has left its row unlocked and needs it again: never lock that one.
    between = running_between(cur, {one.job.id for rows in found.values() for one in rows if one.open})
    ids = [one.job.id for at in returning for one in found[at] if one.open and one.job.id not in between]
    waiting, gone = _lock(cur, _SHARE, ids, guarded=guarded)
    ids = [one.job.id for at in others for one in found[at] if one.open and one.job.id not in between]
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
        if any(one.open for one in still):
            _replace(cur, plan, at, ours)
        elif still:  # it ended, and its window did not
            plan.answered[at] = still[-1].job


def _replace(cur: Cursor, plan: Plan, at: int, waiting: list[JobRow]) -> None:
    """Let the first that waits take over, or cancel all that wait; without any, the new one runs after the running."""
    job, row = plan.jobs[at], plan.rows[at]
    assert job.unique is not None
    if job.unique.on_conflict == "replace":
        fixed = (row[0], row[1], row[2], job.group, job.limit)
        same = [one for one in waiting if (one.action, one.queue, one.key, one.group, one.limit) == fixed]
        if same:
            taken = _take_over(cur, same[0].id, row)
            if taken is not None:
                others = [one for one in waiting if one is not same[0]]
                plan.answered[at] = _cancel(cur, others, taken) if others else taken
                return
    if waiting:
        plan.replaced[at] = waiting


def _take_over(cur: Cursor, row_id: int, row: tuple[Any, ...]) -> JobRow | None:
    _, _, _, payload, run_at, company, user, context, priority, _, _, _, *rest = row
    until, seconds, conflict, expires_at, requested_by = rest
    cur.execute(
        _TAKE_OVER,
        {
            "id": row_id,
            "payload": payload,
            "run_at": run_at,
            "company_id": company,
            "user_id": user,
            "context": context,
            "priority": DEFAULT_PRIORITY if priority is None else priority,
            "until": until,
            "seconds": seconds,
            "conflict": conflict,
            "expires_at": expires_at,
            "requested_by": requested_by,
        },
    )
    found = cur.fetchone()
    return None if found is None else replace(read_job_row(found, existed=True), taken_over=True)


def _lock(cur: Cursor, statement: str, ids: Iterable[int], *, guarded: bool) -> tuple[set[int], set[int]]:
    """Lock those of ``ids`` that are open and that nobody has; return them, and those that changed since."""
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
    if passed_over:  # somebody has them, or (in READ COMMITTED) they ended this moment
        cur.execute(_STILL_PENDING, {"ids": passed_over})
        changed |= set(passed_over) - {row_id for (row_id,) in cur.fetchall()}
    return locked, changed


def _try_lock(cur: Cursor, statement: str, ids: list[int], *, guarded: bool) -> set[int] | None:
    """Return which were locked; None when one of them changed since the caller's snapshot was taken.

    Such a row may be over: answering with it could lose a job, and letting 40001 out would run the caller's request
    again for the sake of ours. The savepoint keeps the caller's transaction.
    """
    if not guarded:
        cur.execute(statement, {"ids": ids})
        return {row_id for (row_id,) in cur.fetchall()}
    cur.execute("SAVEPOINT sidestream_unique")
    try:
        cur.execute(statement, {"ids": ids})
        got = {row_id for (row_id,) in cur.fetchall()}
    except Exception as error:
        if sqlstate(error) != SERIALIZATION_FAILURE:
            raise
        cur.execute("ROLLBACK TO SAVEPOINT sidestream_unique")
        got = None
    cur.execute("RELEASE SAVEPOINT sidestream_unique")
    return got
