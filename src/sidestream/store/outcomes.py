"""The write side: a job's one INSERT (:mod:`~sidestream.store.insert`), its one "done", and every other write."""

from __future__ import annotations

from sidestream.errors import LockLost
from sidestream.job.errorgroup import error_group
from sidestream.job.job import ACCUSED_AFTER
from sidestream.job.reason import Reason
from sidestream.store.compare_and_set import UTC_NOW, CasResult, compare_and_set, storable, write
from sidestream.store.cursor import Cursor
from sidestream.store.insert import insert, insert_done
from sidestream.store.job_row import JobRow

__all__ = [
    "AGE_CAP",
    "CasResult",
    "JobRow",
    "count_releases",
    "crash",
    "fail_attempt",
    "fail_job",
    "finish",
    "insert",
    "insert_done",
    "snooze",
    "suspect",
]

AGE_CAP = 24 * 3600.0
"""Seconds after its first counted release for which a job may be handed back again and again."""
NO_MOST = 2**31 - 1
"""Attempts that no job has: whoever does not know its action's policy leaves it to who runs it next."""
CHARGED = -1
"""In ``suspects``: it killed its host, which is charged already, and goes on running alone."""
AGE_CAP_FROM = 10
"""Releases below which the age does not count: waiting a day for one's turn is no fault."""

# The second condition is what D3 rests on: the lock is ours exactly as long as the transaction that took it.
_FINISH = """
    UPDATE sidestream_job
    SET state = 'done', started_at = transaction_timestamp() AT TIME ZONE 'UTC',
        ended_at = clock_timestamp() AT TIME ZONE 'UTC', error = NULL, reason = NULL
    WHERE id = %(id)s::bigint AND state = 'pending' AND current_setting('sidestream.job', true) = %(id)s::bigint::text
    RETURNING id"""

_AS_SEEN = "state = 'pending' AND attempts = %(seen)s::integer"
_STARTS_AGAIN = "suspects = 0, releases = 0, released_since = NULL, reason = NULL, error = %(error)s::text"
_FAIL = compare_and_set(
    f"attempts = j.attempts + 1, run_at = {UTC_NOW} + %(delay)s::float8 * interval '1 second', {_STARTS_AGAIN}",
    _AS_SEEN,
)
_BURY = compare_and_set(
    f"""state = 'failed', ended_at = {UTC_NOW}, attempts = j.attempts + %(charge)s::integer, error = %(error)s::text,
        error_group = %(group)s::text""",
    _AS_SEEN,
)
_CRASHES = "j.crashes + 1 + greatest(j.suspects, 0)"
_CRASHED_OFTEN = f"({_CRASHES} >= %(max)s::integer OR j.attempts + 1 - j.forgiven >= %(most)s::integer)"
_CRASH = compare_and_set(
    f"""attempts = j.attempts + 1, crashes = {_CRASHES},
        state = CASE WHEN {_CRASHED_OFTEN} THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN {_CRASHED_OFTEN} THEN {UTC_NOW} END,
        error_group = CASE WHEN {_CRASHED_OFTEN} THEN %(group)s::text END,
        {_STARTS_AGAIN.replace("suspects = 0", "suspects = %(suspects)s::integer")}""",
    _AS_SEEN,
)
# "snoozed" begins a new count of releases: putting itself off is what the action wanted, and has a cap of its own.
_SNOOZE = compare_and_set(
    f"""snoozes = j.snoozes + 1, run_at = {UTC_NOW} + %(delay)s::float8 * interval '1 second', suspects = 0,
        releases = 0, released_since = NULL, reason = %(reason)s::text,
        state = CASE WHEN j.snoozes >= %(cap)s::integer THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN j.snoozes >= %(cap)s::integer THEN {UTC_NOW} END,
        error_group = CASE WHEN j.snoozes >= %(cap)s::integer THEN %(group)s::text END,
        error = CASE WHEN j.snoozes >= %(cap)s::integer
                THEN format('It snoozed more than %%s times; the last reason: %%s', %(cap)s::integer, %(told)s::text)
                ELSE j.error END""",
    _AS_SEEN,
)
# Not beyond what accuses it: whoever cannot read a dead worker's slots suspects also what only waited there.
_SUSPECT = compare_and_set(
    f"suspects = CASE WHEN j.suspects < 0 THEN j.suspects ELSE least(j.suspects + 1, {ACCUSED_AFTER}) END", _AS_SEEN
)
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
        state = CASE WHEN {_SPENT} THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN {_SPENT} THEN {UTC_NOW} END,
        error_group = CASE WHEN {_SPENT} THEN %(group)s::text END,
        error = CASE WHEN {_SPENT}
                THEN format('It was released %%s times since %%s UTC without being run; the last reason: %%s',
                            {_COUNTED}, to_char(coalesce(j.released_since, {UTC_NOW}), 'YYYY-MM-DD HH24:MI:SS'),
                            %(told)s::text)
                ELSE j.error END""",
    "state = 'pending'",
)


def finish(cur: Cursor, id: int) -> None:  # noqa: A002
    """Write "done" in the transaction in which :func:`~sidestream.store.acquire.acquire_job` locked the row.

    Raises:
        LockLost: That transaction has ended, or the row is not open: roll back, nothing of this may be committed.
    """
    cur.execute(_FINISH, {"id": id})
    if cur.fetchone() is None:
        raise LockLost(
            f"Job {id} cannot be finished: the transaction that acquired it has ended, or its row is no longer open; "
            "what was written since was not committed."
        )


def fail_attempt(cur: Cursor, id: int, attempts_seen: int, delay_s: float, error: str) -> CasResult:  # noqa: A002
    """Charge a failed attempt; the job is due again in ``delay_s`` seconds and keeps its place in its key's line."""
    parameters = {"id": id, "seen": attempts_seen, "delay": delay_s, "error": storable(error)}
    return write(cur, _FAIL, parameters, attempts_seen=attempts_seen)


def fail_job(
    cur: Cursor,
    id: int,  # noqa: A002
    attempts_seen: int,
    error: str,
    *,
    charge_attempt: bool = True,
) -> CasResult:
    """End the job as dead; its key is free."""
    parameters = {"id": id, "seen": attempts_seen, "charge": int(charge_attempt)}
    return write(cur, _BURY, {**parameters, **_told(error)}, attempts_seen=attempts_seen)


def crash(
    cur: Cursor,
    id: int,  # noqa: A002
    attempts_seen: int,
    error: str,
    max_crashes: int,
    *,
    max_attempts: int = NO_MOST,
    with_host: bool = False,
) -> CasResult:
    """Charge an attempt that killed its process, and what it was suspected of before; dead at ``max_crashes``.

    A crash is an attempt like another: the job is dead, too, when it was the last of ``max_attempts``.
    ``with_host``: it took its worker along. It stays a suspect, so it runs alone again and is charged at once if it
    does so a third time.
    """
    parameters = {
        "id": id,
        "seen": attempts_seen,
        "max": max_crashes,
        "most": max_attempts,
        "suspects": CHARGED if with_host else 0,
        **_told(error),
    }
    return write(cur, _CRASH, parameters, attempts_seen=attempts_seen)


def snooze(
    cur: Cursor,
    id: int,  # noqa: A002
    attempts_seen: int,
    delay_s: float,
    reason: Reason,
    cap: int,
) -> CasResult:
    """Put the job off because its action asked for it: no attempt is charged, it keeps its place in its key's line.

    Counted in the row; the job fails when it did so ``cap`` times before.
    """
    told = storable(str(reason.params["message"]))
    group = error_group(f"It snoozed more than 0 times; the last reason: {told}")
    parameters = {
        "id": id,
        "seen": attempts_seen,
        "delay": delay_s,
        "reason": storable(reason.stored()),
        "told": told,
        "group": group,
        "cap": cap,
    }
    return write(cur, _SNOOZE, parameters, attempts_seen=attempts_seen)


def suspect(cur: Cursor, id: int, attempts_seen: int) -> CasResult:  # noqa: A002
    """Note that it ran when its host or its worker died: no attempt is charged; the second time accuses it."""
    return write(cur, _SUSPECT, {"id": id, "seen": attempts_seen}, attempts_seen=attempts_seen)


def count_releases(
    cur: Cursor,
    id: int,  # noqa: A002
    releases: int,
    reason: Reason,
    cap: int,
    *,
    age_cap_s: float = AGE_CAP,
) -> CasResult:
    """Note that the job was handed back for the ``releases``-th time since its last start, and why.

    Report the first one and then every tenth. The job fails at ``cap`` releases, or at ``AGE_CAP_FROM`` of them
    when the first was ``age_cap_s`` seconds ago; a job that is not due starts its count anew.
    """
    told = storable(str(reason))
    parameters = {
        "id": id,
        "releases": releases,
        "reason": storable(reason.stored()),
        "told": told,
        "group": error_group(f"It was released 0 times; the last reason: {told}"),
        "cap": cap,
        "age": age_cap_s,
    }
    return write(cur, _COUNT_RELEASES, parameters)


def _told(error: str) -> dict[str, str]:
    return {"error": storable(error), "group": error_group(storable(error))}
