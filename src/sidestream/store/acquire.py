"""Acquire a job's row with one statement, or find out why that is not possible now.

Call :func:`acquire_job` first in the job's transaction, at REPEATABLE READ. Its snapshot then proves two things at
once: no earlier job with the same key is pending, and the effects of all earlier ones are visible.

1. :func:`lock_tag`, when the job has a key: in a statement of its own *before* BEGIN. A lock taken inside the
   transaction would come after its snapshot, which might not show the effects of the previous holder.
2. :func:`acquire_job`. It raises serialization failures (40001: the row changed after the snapshot) unchanged; the
   executor tries again with a new snapshot.
3. :func:`sidestream.store.outcomes.finish` in the same transaction.
4. :func:`unlock_tag`.
"""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any
from uuid import UUID

from sidestream.job.job import DEFAULT_PRIORITY
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.states import State
from sidestream.store.compare_and_set import UTC_NOW, compare_and_set, write
from sidestream.store.cursor import Cursor, fetch_ids, fetch_one, fetch_value
from sidestream.store.locks import NOT_BETWEEN, running_between

_DUE = f"run_at <= {UTC_NOW} + interval '1 second'"
"""A job may be acquired up to a second early, because the clocks of Redis and PostgreSQL differ."""


def precedes(job: str) -> str:
    """Return the SQL condition that the row ``before`` precedes ``job`` in its key (promise 4).

    "Due" has the same tolerance for both; otherwise a job that is acquired early could pass an earlier one.
    """
    return f"""before.state = 'pending' AND before.key = {job}.key AND before.id < {job}.id
        AND (before.{_DUE} OR before.attempts > 0 OR before.snoozes > 0)"""


def has_predecessor(job: str) -> str:
    """Return the condition that an earlier row with the same key blocks the row ``job``."""
    return f"{job}.key IS NOT NULL AND EXISTS (SELECT FROM sidestream_job before WHERE {precedes(job)})"


def expired(job: str) -> str:
    """Return the SQL condition that ``job`` has expired without a start."""
    return f"({job}.expires_at <= {UTC_NOW} AND {job}.attempts = 0 AND {job}.snoozes = 0)"


# Duplicates that overlapping transactions could not see of each other. A later job that replaces this one counts even
# when it is done, because it has newer arguments. In a window, every job counts unless it is cancelled.
_REPLACES = """other.unique_key = j.unique_key AND other.id > j.id AND other.unique_conflict <> 'return'
        AND other.state IN ('pending', 'done') AND (other.unique_until <> 'window'
            OR j.created_at > other.created_at - other.unique_seconds * interval '1 second')"""
_PENDING_BEFORE = """other.unique_key = j.unique_key AND other.id < j.id
        AND other.state = 'pending'"""
_IN_WINDOW_BEFORE = """j.unique_until = 'window' AND other.unique_key = j.unique_key AND other.id < j.id
        AND other.unique_until = 'window' AND other.state <> 'cancelled'
        AND other.created_at > j.created_at - j.unique_seconds * interval '1 second'"""
_FOLDABLE = f"""(j.unique_key IS NOT NULL AND (
        EXISTS (SELECT FROM sidestream_job other WHERE {_REPLACES})
        OR EXISTS (SELECT FROM sidestream_job other WHERE {_PENDING_BEFORE})
        OR EXISTS (SELECT FROM sidestream_job other WHERE {_IN_WINDOW_BEFORE})))"""
_PREFETCH = "/* prefetch */"


@dataclass(frozen=True, slots=True)
class Acquired:
    """This session holds the row until the transaction ends."""

    id: int
    action: str
    #: JSON, for :func:`sidestream.job.codec.decode_payload`.
    payload: str
    queue: str
    key: str | None
    #: Failed attempts and crashes so far, which every later compare-and-set compares.
    attempts: int
    #: How many of them a person's retry forgave: a retry policy counts ``attempts - forgiven``.
    forgiven: int
    #: How many killed their process.
    crashes: int
    #: Deaths of its host that it may have caused; -1 when it was charged with one. Unless it is 0, run the job alone.
    suspects: int
    #: The PostgreSQL process that holds the lock.
    backend_pid: int
    #: The user that it runs as, and its context (JSON).
    user_id: int | None = None
    context: str | None = None
    priority: int = DEFAULT_PRIORITY
    group: str | None = None
    limit: str | None = None
    #: Who requested it, if that is not the user that it runs as.
    requested_by: int | None = None
    #: The values of ``prefetch``.
    prefetched: tuple[Any, ...] = ()


# By field of Acquired: its column.
_COLUMNS = {one.name: one.name for one in fields(Acquired) if one.name != "prefetched"} | {
    "backend_pid": "pg_backend_pid()",
    "group": "group_name",
    "limit": "limit_key",
}
_ACQUIRED = f"""
    -- "sidestream.job" lasts as long as this transaction, and finish() requires it. MATERIALIZED, because it must not
    -- be set for a row that turns out to be locked.
    SELECT {", ".join(_COLUMNS.values())}{_PREFETCH}, set_config('sidestream.job', id::text, true) FROM mine"""
_NOT_CANCELLED = """NOT EXISTS (
    SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL AND c.request = 'cancel')"""
# Locks the row (FOR NO KEY UPDATE, skipping a locked one) and returns it if the job may run; sets "sidestream.job".
# Run it at REPEATABLE READ; it raises 40001 when the row changed after the snapshot. Index: the primary key,
# sidestream_job_key, sidestream_control_pending and, for a unique job, sidestream_job_unique and _unique_kept.
_ACQUIRE = f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM sidestream_job j
        WHERE j.id = %(id)s::bigint AND j.state = 'pending' AND j.{_DUE} AND {_NOT_CANCELLED}
        AND NOT ({has_predecessor("j")}) AND (j.expires_at IS NULL OR NOT {expired("j")})
        AND (%(unfolded)s::boolean OR NOT {_FOLDABLE})
        FOR NO KEY UPDATE OF j SKIP LOCKED)
    {_ACQUIRED}"""
# The same for a job between two of its own transactions. It holds a session lock and its key, so neither its time nor
# earlier jobs matter, only that no session ended it or charged an attempt meanwhile.
_ACQUIRE_AGAIN = f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM sidestream_job j
        WHERE j.id = %(id)s::bigint AND j.state = 'pending' AND j.attempts = %(seen)s::integer AND {_NOT_CANCELLED}
        FOR NO KEY UPDATE OF j SKIP LOCKED)
    {_ACQUIRED}"""
# Returns what may have kept a row from being acquired. Index: as above.
_WHY_NOT = f"""
    SELECT j.state, extract(epoch FROM j.run_at - {UTC_NOW})::float8 AS seconds, NOT j.{_DUE} AS early,
           NOT {_NOT_CANCELLED} AS cancelling, j.attempts, j.attempts > 0 OR j.snoozes > 0 AS started, (SELECT
           min(before.id) FROM sidestream_job before WHERE {precedes("j")}) AS blocked_by, to_char(CASE WHEN
           {expired("j")} THEN j.expires_at END, 'YYYY-MM-DD HH24:MI:SS') AS expired_at, j.unique_until,
           j.unique_conflict = 'return' AS returns, (SELECT max(other.id) FROM sidestream_job other WHERE {_REPLACES})
           AS replaced_by, ARRAY(SELECT other.id FROM sidestream_job other WHERE {_PENDING_BEFORE} ORDER BY other.id
           LIMIT 10) AS before, (SELECT min(other.id) FROM sidestream_job other WHERE {_IN_WINDOW_BEFORE}) AS in_window
    FROM sidestream_job j WHERE j.id = %(id)s::bigint"""
# Cancels a pending row, unless it is locked. Index: the primary key.
_CANCEL = compare_and_set(f"state = 'cancelled', ended_at = {UTC_NOW}, reason = %(reason)s::text", "state = 'pending'")
# Locks pending rows FOR SHARE and returns their ids, skipping those of running jobs. Index: the primary key.
_WAITING = f"""
    SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending' AND {NOT_BETWEEN}
    ORDER BY id FOR SHARE SKIP LOCKED"""
# Waits for the row's lock up to a timeout, and returns its state. Index: the primary key. One statement, so that the
# timeout needs no transaction and does not outlive it in autocommit mode.
_STATE_WHEN_UNLOCKED = """
    WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', %(timeout)s::text, true))
    SELECT j.state FROM patience, sidestream_job j WHERE j.id = %(id)s::bigint FOR NO KEY UPDATE OF j"""

# Returns whether a direct job ended. Index: sidestream_job_uuid.
_INBOX_HAS = "SELECT EXISTS (SELECT FROM sidestream_job WHERE uuid = %(uuid)s::uuid AND state <> 'pending')"


@dataclass(frozen=True, slots=True)
class Terminal:
    """The job has ended: settle the delivery."""

    state: State


@dataclass(frozen=True, slots=True)
class Cancelled:
    """This transaction cancelled an expired or duplicate job. Commit, then settle the delivery."""

    #: For people; the row has it too.
    reason: Reason


@dataclass(frozen=True, slots=True)
class Missing:
    """The row does not exist: it was rolled back or deleted. Settle the delivery."""


@dataclass(frozen=True, slots=True)
class NotDue:
    """It is not due yet."""

    #: Seconds until it is due.
    seconds: float
    #: Whether it was started before, so that it blocks later jobs with its key.
    started: bool


@dataclass(frozen=True, slots=True)
class Blocked:
    """Earlier pending jobs with the same key block it."""

    #: The smallest id of them.
    by: int


@dataclass(frozen=True, slots=True)
class Cancelling:
    """A person requested to cancel it while its row was locked; a worker has to do so."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another session charged an attempt between two transactions; the caller lost the job."""

    attempts: int


@dataclass(frozen=True, slots=True)
class Locked:
    """Another session holds the row: it runs elsewhere, or a person edits it."""


AcquireResult = Acquired | Terminal | Cancelled | Missing | NotDue | Blocked | Cancelling | Superseded | Locked


def acquire_job(
    cur: Cursor,
    id: int,  # noqa: A002
    *,
    attempts_seen: int | None = None,
    prefetch: tuple[str, ...] = (),
) -> AcquireResult:
    """Lock the job's row and read it; if that is not possible, find out why with a second query.

    ``prefetch``: SQL expressions (constants of the caller) that the same statement reads into
    :attr:`Acquired.prefetched`; the job's row is named ``mine`` in them.

    ``attempts_seen``: pass it in the second and later transactions of a three-step or ``relock`` job, which holds a
    session lock. The job is then acquired even if an earlier job with its key became due meanwhile.
    """
    statement = _statement(attempts_seen is not None, prefetch)
    parameters = {"id": id, "seen": attempts_seen, "unfolded": False}
    cur.execute(statement, parameters)
    row = cur.fetchone()
    if row is not None:
        return _acquired(row)
    found = _why_not(cur, id, attempts_seen)
    if found is not None:
        return found
    cur.execute(statement, {**parameters, "unfolded": True})
    row = cur.fetchone()
    return Locked() if row is None else _acquired(row)


def _acquired(row: Sequence[Any]) -> Acquired:
    # Without the last column, which only sets the transaction's right to finish the job.
    return Acquired(**dict(zip(_COLUMNS, row, strict=False)), prefetched=tuple(row[len(_COLUMNS) : -1]))


def _why_not(cur: Cursor, row_id: int, attempts_seen: int | None) -> AcquireResult | None:
    """Return why the row was not acquired; None if it may be locked, or duplicates allow it."""
    cur.execute(_WHY_NOT, {"id": row_id})
    row = fetch_one(cur)
    if row is None:
        return Missing()
    if row.state != State.PENDING:
        return Terminal(State(row.state))
    if row.cancelling:
        return Cancelling()
    if attempts_seen is not None:
        return Superseded(row.attempts) if row.attempts != attempts_seen else Locked()
    if row.expired_at is not None:
        return _cancel(cur, row_id, Reason(ReasonCode.EXPIRED, {"expires_at": row.expired_at}))
    if row.replaced_by is not None:
        return _cancel(cur, row_id, Reason(ReasonCode.REPLACED, {"by": row.replaced_by}))
    if row.early:
        return NotDue(row.seconds, row.started)
    match row.unique_until:
        case "window":
            first = row.in_window
        case "done":
            first = min(row.before, default=None)
        case _:
            first = None
    if row.returns and first is not None:
        return _cancel(cur, row_id, Reason(ReasonCode.DUPLICATE, {"of": first}))
    if row.blocked_by is not None:
        return Blocked(row.blocked_by)
    return _beside(cur, row_id, row.unique_until, row.before, returns=row.returns) if row.before else None


def _beside(cur: Cursor, row_id: int, until: str, before: Sequence[int], *, returns: bool) -> AcquireResult | None:
    """Examine the pending duplicates ``before``; None when the job may run despite them."""
    if returns and until != "started":
        return None
    cur.execute(_WAITING, {"ids": list(before)})
    waiting = fetch_ids(cur)
    waiting -= running_between(cur, waiting)  # one that got there this moment
    if returns:  # a job that runs already may not see what this job's caller wrote
        return _cancel(cur, row_id, Reason(ReasonCode.DUPLICATE, {"of": min(waiting)})) if waiting else None
    # Until a duplicate is done, this one must not run; waiting ones are cancelled at their start, because it replaces
    # them.
    return Locked() if until != "started" and len(waiting) < len(before) else None


def _cancel(cur: Cursor, row_id: int, reason: Reason) -> AcquireResult:
    written = write(cur, _CANCEL, {"id": row_id, "reason": reason.stored()})
    if written.applied:
        return Cancelled(reason)
    return Locked() if written.locked or written.state is None else Terminal(written.state)


@cache  # a connection prepares each text once, under its identity
def _statement(again: bool, prefetch: tuple[str, ...]) -> str:
    return (_ACQUIRE_AGAIN if again else _ACQUIRE).replace(_PREFETCH, "".join(f", {one}" for one in prefetch))


def state_when_unlocked(cur: Cursor, id: int, *, timeout: float) -> State | None:  # noqa: A002
    """Wait up to ``timeout`` seconds for the row's lock; return its state, None if missing.

    Call it after a commit that got no reply: a plain read may return "pending" while the old backend still commits. It
    raises the driver's 55P03 after ``timeout``. Later statements of the same transaction keep that lock timeout.
    """
    cur.execute(_STATE_WHEN_UNLOCKED, {"id": id, "timeout": f"{max(1, int(timeout * 1000))}ms"})
    row = fetch_one(cur)
    return None if row is None else State(row.state)


def inbox_has(cur: Cursor, uuid: UUID) -> bool:
    """Return whether the effect or the failure of the direct job ``uuid`` is committed here."""
    cur.execute(_INBOX_HAS, {"uuid": str(uuid)})
    return bool(fetch_value(cur))
