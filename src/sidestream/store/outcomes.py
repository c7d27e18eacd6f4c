"""Write what happened to a job: its "done", and every other outcome.

Each write is one statement. "Done" needs the transaction that acquired the row; every other outcome is a
compare-and-set (:mod:`~sidestream.store.compare_and_set`) that skips a locked row.
"""

from __future__ import annotations

from sidestream.errors import LockLost
from sidestream.job.errorgroup import error_group
from sidestream.job.job import ACCUSED_AFTER
from sidestream.job.reason import Reason
from sidestream.store.compare_and_set import UTC_NOW, CasResult, compare_and_set, storable, write
from sidestream.store.cursor import Cursor
from sidestream.store.locks import NOT_BETWEEN

AGE_CAP = 24 * 3600.0
"""Seconds after its first counted release for which a job may be released again."""
NO_MOST = 2**31 - 1
"""More attempts than any job has, for a caller that does not know the policy of the action."""
CHARGED = -1
"""Value of ``suspects``: the job was charged for killing its host, and still runs alone."""
AGE_CAP_FROM = 10
"""Number of releases below which the age does not count: a job may wait a day without a fault."""

# Writes "done" to the row that this transaction acquired, and returns its id. Index: the primary key; it writes to
# that one and to sidestream_job_action. "sidestream.job" ends with the transaction, so a commit inside the action
# ends the right to write "done".
_FINISH = """
    UPDATE sidestream_job
    SET state = 'done', started_at = transaction_timestamp() AT TIME ZONE 'UTC',
        ended_at = clock_timestamp() AT TIME ZONE 'UTC', error = NULL, reason = NULL
    WHERE id = %(id)s::bigint AND state = 'pending' AND current_setting('sidestream.job', true) = %(id)s::bigint::text
    RETURNING id"""

_AS_SEEN = "state = 'pending' AND attempts = %(seen)s::integer"
_STARTS_AGAIN = "suspects = 0, releases = 0, released_since = NULL, reason = NULL, error = %(error)s::text"
# Charges a failed attempt and schedules the next one.
_FAIL_ATTEMPT = compare_and_set(
    f"attempts = j.attempts + 1, run_at = {UTC_NOW} + %(delay)s::float8 * interval '1 second', {_STARTS_AGAIN}",
    _AS_SEEN,
)
# Ends the job as failed.
_FAIL_JOB = compare_and_set(
    f"""state = 'failed', ended_at = {UTC_NOW}, attempts = j.attempts + %(charge)s::integer, error = %(error)s::text,
        error_group = %(group)s::text""",
    _AS_SEEN,
)
_CRASHES = "j.crashes + 1 + greatest(j.suspects, 0)"
_CRASHED_OFTEN = f"({_CRASHES} >= %(max)s::integer OR j.attempts + 1 - j.forgiven >= %(most)s::integer)"
# Charges a crash, and what the job was suspected of; fails the job when there were too many crashes or attempts.
_CRASH = compare_and_set(
    f"""attempts = j.attempts + 1, crashes = {_CRASHES},
        state = CASE WHEN {_CRASHED_OFTEN} THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN {_CRASHED_OFTEN} THEN {UTC_NOW} END,
        error_group = CASE WHEN {_CRASHED_OFTEN} THEN %(group)s::text END,
        {_STARTS_AGAIN.replace("suspects = 0", "suspects = %(suspects)s::integer")}""",
    _AS_SEEN,
)
# Schedules the job anew, or fails it when it was snoozed too often. It resets the releases, because a snooze is what
# the action wanted, and has its own cap.
_SNOOZE = compare_and_set(
    f"""snoozes = j.snoozes + 1, run_at = {UTC_NOW} + %(delay)s::float8 * interval '1 second', suspects = 0,
        releases = 0, released_since = NULL, reason = %(reason)s::text,
        state = CASE WHEN j.snoozes >= %(cap)s::integer THEN 'failed' ELSE 'pending' END,
        ended_at = CASE WHEN j.snoozes >= %(cap)s::integer THEN {UTC_NOW} END,
        error_group = CASE WHEN j.snoozes >= %(cap)s::integer THEN %(group)s::text END,
        error = CASE WHEN j.snoozes >= %(cap)s::integer
                THEN format('It snoozed more than %%s times; the last reason: %%s', %(cap)s::integer, %(message)s::text)
                ELSE j.error END""",
    _AS_SEEN,
)
# Increments the suspicion, but not beyond what accuses the job: without a dead worker's slots, jobs that only waited
# there are suspected too.
_SUSPECT = compare_and_set(
    f"suspects = CASE WHEN j.suspects < 0 THEN j.suspects ELSE least(j.suspects + 1, {ACCUSED_AFTER}) END", _AS_SEEN
)
# Records the releases; fails the job when there were too many. The broker's count restarts when Redis was emptied: a
# count below the row's is added in the steps in which it is reported. A job that is not due does not wait, so it does
# not age.
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
                            %(message)s::text)
                ELSE j.error END""",
    f"state = 'pending' AND {NOT_BETWEEN}",
)


def finish(cur: Cursor, id: int) -> None:  # noqa: A002
    """Write "done" in the transaction that acquired the row.

    Raises:
        LockLost: That transaction has ended, or the row is not pending. Roll back; nothing may be committed.
    """
    cur.execute(_FINISH, {"id": id})
    if cur.fetchone() is None:
        raise LockLost(
            f"Job {id} cannot be finished: the transaction that acquired it has ended, or its row is no longer "
            "pending; its later changes were not committed."
        )


def fail_attempt(cur: Cursor, id: int, attempts_seen: int, delay_s: float, error: str) -> CasResult:  # noqa: A002
    """Charge a failed attempt; the job, due in ``delay_s`` seconds, still blocks its key."""
    parameters = {"id": id, "seen": attempts_seen, "delay": delay_s, "error": storable(error)}
    return write(cur, _FAIL_ATTEMPT, parameters, attempts_seen=attempts_seen)


def fail_job(
    cur: Cursor,
    id: int,  # noqa: A002
    attempts_seen: int,
    error: str,
    *,
    charge_attempt: bool = True,
) -> CasResult:
    """End the job as failed, which frees its key."""
    parameters = {"id": id, "seen": attempts_seen, "charge": int(charge_attempt)}
    return write(cur, _FAIL_JOB, {**parameters, **_error_columns(error)}, attempts_seen=attempts_seen)


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
    """Charge a crash of its process, and earlier suspicions; the job fails at ``max_crashes``.

    A crash is also a failed attempt, so the job fails at ``max_attempts``, too. ``with_host``: its worker died with it.
    The job stays a suspect, so it runs alone again, and another death of its worker is charged at once.
    """
    parameters = {
        "id": id,
        "seen": attempts_seen,
        "max": max_crashes,
        "most": max_attempts,
        "suspects": CHARGED if with_host else 0,
        **_error_columns(error),
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
    """Delay the job as its action requested, without a charge; it still blocks its key.

    The row counts the snoozes; the job fails when it was snoozed ``cap`` times before.
    """
    message = storable(str(reason.params["message"]))
    group = error_group(f"It snoozed more than 0 times; the last reason: {message}")
    parameters = {
        "id": id,
        "seen": attempts_seen,
        "delay": delay_s,
        "reason": storable(reason.stored()),
        "message": message,
        "group": group,
        "cap": cap,
    }
    return write(cur, _SNOOZE, parameters, attempts_seen=attempts_seen)


def suspect(cur: Cursor, id: int, attempts_seen: int) -> CasResult:  # noqa: A002
    """Record that the job ran when its worker or host died; the second time, it is accused."""
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
    """Record the ``releases``-th release of the job since its last start, and its reason.

    Report the first one and then every tenth. The job fails at ``cap`` releases, or at ``AGE_CAP_FROM`` of them if the
    first was ``age_cap_s`` seconds ago. A job that is not due resets its count.
    """
    message = storable(str(reason))
    parameters = {
        "id": id,
        "releases": releases,
        "reason": storable(reason.stored()),
        "message": message,
        "group": error_group(f"It was released 0 times; the last reason: {message}"),
        "cap": cap,
        "age": age_cap_s,
    }
    return write(cur, _COUNT_RELEASES, parameters)


def _error_columns(error: str) -> dict[str, str]:
    return {"error": storable(error), "group": error_group(storable(error))}
