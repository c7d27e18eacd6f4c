"""D2: the one statement that opens a job, and what its answer means.

Call :func:`acquire_job` first in the job's transaction, at REPEATABLE READ. Its own snapshot then proves two things at
once: that nothing stands before the job, and that the effects of all that stood before it are visible.

1. :func:`lock_tag`, when the job has a key: in a statement of its own *before* BEGIN. A lock taken inside the
   transaction would come after its snapshot, and the holder before us would be over but not visible (C5).
2. :func:`acquire_job`. Serialization failures (40001: the row changed after the snapshot) come out as they are; the
   executor's loop tries again with a new snapshot.
3. :func:`sidestream.store.outcomes.finish` in the same transaction.
4. :func:`unlock_tag`.
"""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from sidestream.job.job import DEFAULT_PRIORITY
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.states import State
from sidestream.store.compare_and_set import UTC_NOW, compare_and_set, write
from sidestream.store.cursor import Cursor
from sidestream.store.locks import job_lock, lock_tag, running_between, unlock_tag

__all__ = [
    "AcquireResult",
    "Acquired",
    "Blocked",
    "Cancelled",
    "Cancelling",
    "Locked",
    "Missing",
    "NotDue",
    "Superseded",
    "Terminal",
    "acquire_job",
    "before_in_line",
    "expired",
    "inbox_has",
    "job_lock",
    "lock_tag",
    "standing_before",
    "state_when_unlocked",
    "unlock_tag",
]

_DUE = f"run_at <= {UTC_NOW} + interval '1 second'"
"""A job may be acquired up to a second early: Redis and PostgreSQL have clocks of their own (C23)."""


def before_in_line(job: str) -> str:
    """Return the condition that the row ``before`` stands before the row ``job`` in its key's line (promise 4).

    "Due" is the same with the same tolerance for both, else a job that is acquired early could pass one due before it.
    """
    return f"""before.state = 'pending' AND before.key = {job}.key AND before.id < {job}.id
        AND (before.{_DUE} OR before.attempts > 0 OR before.snoozes > 0)"""


def standing_before(job: str) -> str:
    """Return the condition that any row stands before the row ``job`` in its key's line."""
    return f"{job}.key IS NOT NULL AND EXISTS (SELECT FROM sidestream_job before WHERE {before_in_line(job)})"


def expired(job: str) -> str:
    """Return the condition that the row ``job`` was to be started by a moment that has passed, and was not."""
    return f"({job}.expires_at <= {UTC_NOW} AND {job}.attempts = 0)"


# What overlapping transactions could not see of each other (C9). A later one that replaces counts also once it is done:
# it has newer arguments. In a window, what is not cancelled counts.
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
_OPENED = f"""
    -- "sidestream.job" lasts as long as this transaction: rows.finish asks for it. MATERIALIZED, because it must not be
    -- set for a row that turns out to be locked.
    SELECT set_config('sidestream.job', id::text, true), pg_backend_pid(), id, action, payload, queue, key, attempts,
           forgiven, crashes, suspects, user_id, context, priority, group_name, limit_key, requested_by{_PREFETCH}
    FROM mine"""
_NOT_CANCELLED = """NOT EXISTS (
    SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL AND c.request = 'cancel')"""
_OPEN = f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM sidestream_job j
        WHERE j.id = %(id)s::bigint AND j.state = 'pending' AND j.{_DUE} AND {_NOT_CANCELLED}
        AND NOT ({standing_before("j")}) AND (j.expires_at IS NULL OR NOT {expired("j")})
        AND (%(unfolded)s::boolean OR NOT {_FOLDABLE})
        FOR NO KEY UPDATE OF j SKIP LOCKED)
    {_OPENED}"""
# A job between two of its own transactions holds a session lock and has its place already: neither its time nor its
# line is asked again, only that nobody ended it or charged an attempt meanwhile.
_OPEN_AGAIN = f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM sidestream_job j
        WHERE j.id = %(id)s::bigint AND j.state = 'pending' AND j.attempts = %(seen)s::integer AND {_NOT_CANCELLED}
        FOR NO KEY UPDATE OF j SKIP LOCKED)
    {_OPENED}"""
_WHY_NOT = f"""
    SELECT j.state, extract(epoch FROM j.run_at - {UTC_NOW})::float8, NOT j.{_DUE}, NOT {_NOT_CANCELLED},
           (SELECT min(before.id) FROM sidestream_job before WHERE {before_in_line("j")}), j.attempts,
           to_char(CASE WHEN {expired("j")} THEN j.expires_at END, 'YYYY-MM-DD HH24:MI:SS'), j.unique_until,
           j.unique_conflict = 'return', (SELECT max(other.id) FROM sidestream_job other WHERE {_REPLACES}),
           ARRAY(SELECT other.id FROM sidestream_job other WHERE {_PENDING_BEFORE} ORDER BY other.id LIMIT 10),
           (SELECT min(other.id) FROM sidestream_job other WHERE {_IN_WINDOW_BEFORE}),
           j.attempts > 0 OR j.snoozes > 0
    FROM sidestream_job j WHERE j.id = %(id)s::bigint"""
_END = compare_and_set(f"state = 'cancelled', ended_at = {UTC_NOW}, reason = %(reason)s::text", "state = 'pending'")
_WAITING = """
    SELECT id FROM sidestream_job WHERE id = ANY (%(ids)s::bigint[]) AND state = 'pending' ORDER BY id
    FOR SHARE SKIP LOCKED"""
# In one statement, so that the time-out neither waits for a transaction nor outlives one in autocommit mode.
_STATE_WHEN_UNLOCKED = """
    WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', %(timeout)s::text, true))
    SELECT j.state FROM patience, sidestream_job j WHERE j.id = %(id)s::bigint FOR NO KEY UPDATE OF j"""


@dataclass(frozen=True, slots=True)
class Acquired:
    """The row is ours until the transaction ends."""

    id: int
    action: str
    #: JSON, for :func:`sidestream.job.codec.decode_payload`.
    payload: str
    queue: str
    key: str | None
    #: Starts that failed or crashed before: the mark for every compare-and-set that may follow.
    attempts: int
    #: How many of them a person's retry wrote off: a retry policy counts ``attempts - forgiven``.
    forgiven: int
    #: How many killed their process.
    crashes: int
    #: Deaths of its host for which it may be to blame, -1 when it was charged with one: unless 0, run it alone.
    suspects: int
    #: The PostgreSQL process that holds the lock.
    backend_pid: int
    #: The user that it runs as, and with what else: JSON.
    user_id: int | None = None
    context: str | None = None
    priority: int = DEFAULT_PRIORITY
    group: str | None = None
    limit: str | None = None
    #: Who asked for it, where that is not the user that it runs as.
    requested_by: int | None = None
    #: The values of ``prefetch``.
    prefetched: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Terminal:
    """It is over: settle the delivery."""

    state: State


@dataclass(frozen=True, slots=True)
class Cancelled:
    """It expired, or it is a duplicate: this transaction wrote that it is cancelled. Commit it, settle the delivery."""

    #: In the row too.
    reason: Reason


@dataclass(frozen=True, slots=True)
class Missing:
    """No such row: its transaction, or its savepoint, was rolled back, or it was pruned. Settle the delivery."""


@dataclass(frozen=True, slots=True)
class NotDue:
    """Its row says later."""

    #: Until then.
    seconds: float
    #: Whether it was started before, so that it stands in its key's line all the same.
    started: bool


@dataclass(frozen=True, slots=True)
class Blocked:
    """Pending jobs with the same key stand before it."""

    #: The smallest id of them.
    by: int


@dataclass(frozen=True, slots=True)
class Cancelling:
    """A person asked to cancel it while its row was locked; a worker has to carry that out."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Only when acquired again: somebody else charged an attempt meanwhile, the job is no longer the caller's."""

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
    """Lock the job's row and read it, or say why not (a second, plain read).

    ``prefetch``: SQL expressions (of the caller's own constants) that are read in the same statement, as
    :attr:`Acquired.prefetched`; the job's row is called ``mine`` in them.

    ``attempts_seen``: give it in the second and later transactions of a three-step or ``relock`` job, which holds a
    session lock; the job is then acquired in the state it was in, whatever became due before it meanwhile.
    """
    statement = _opening(attempts_seen is not None, prefetch)
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
    _, pid, found, action, payload, queue, key, attempts, forgiven, crashes, suspects, user, context, *rest = row
    priority, group, limit, requested_by, *prefetched = rest
    return Acquired(
        found,
        action,
        payload,
        queue,
        key,
        attempts,
        forgiven,
        crashes,
        suspects,
        pid,
        user,
        context,
        priority,
        group,
        limit,
        requested_by,
        tuple(prefetched),
    )


def _why_not(cur: Cursor, row_id: int, attempts_seen: int | None) -> AcquireResult | None:
    """Return why the row was not acquired; None when it may be locked, or duplicates that do not count held it back."""
    cur.execute(_WHY_NOT, {"id": row_id})
    row = cur.fetchone()
    if row is None:
        return Missing()
    state, seconds, early, cancelling, blocked_by, attempts, too_late, until, returns, *duplicates, started = row
    replaced, before, in_window = duplicates
    if state != State.PENDING:
        return Terminal(State(state))
    if cancelling:
        return Cancelling()
    if attempts_seen is not None:
        return Superseded(attempts) if attempts != attempts_seen else Locked()
    if too_late is not None:
        return _end(cur, row_id, Reason(ReasonCode.EXPIRED, {"expires_at": too_late}))
    if replaced is not None:
        return _end(cur, row_id, Reason(ReasonCode.REPLACED, {"by": replaced}))
    if early:
        return NotDue(seconds, started)
    first = in_window if until == "window" else min(before, default=None) if until == "done" else None
    if returns and first is not None:
        return _end(cur, row_id, Reason(ReasonCode.DUPLICATE, {"of": first}))
    if blocked_by is not None:
        return Blocked(blocked_by)
    return _beside(cur, row_id, until, before, returns=returns) if before else None


def _beside(cur: Cursor, row_id: int, until: str, before: Sequence[int], *, returns: bool) -> AcquireResult | None:
    """Look at what the pending rows ``before`` with the same unique do; None when the job may run all the same."""
    if returns and until != "started":
        return None
    # A job between two of its transactions needs its row again: this transaction, which lasts as long as its own job,
    # must not lock it.
    cur.execute(_WAITING, {"ids": sorted(set(before) - running_between(cur, before))})
    waiting = {one for (one,) in cur.fetchall()}
    waiting -= running_between(cur, waiting)
    if returns:  # what runs already may have missed what this job's caller wrote
        return _end(cur, row_id, Reason(ReasonCode.DUPLICATE, {"of": min(waiting)})) if waiting else None
    # Until it is done, nothing runs beside it; what waits is cancelled when it starts, because this one replaces it.
    return Locked() if until != "started" and len(waiting) < len(before) else None


def _end(cur: Cursor, row_id: int, reason: Reason) -> AcquireResult:
    written = write(cur, _END, {"id": row_id, "reason": reason.stored()})
    if written.applied:
        return Cancelled(reason)
    return Locked() if written.locked or written.state is None else Terminal(written.state)


@cache  # the text is the name under which a connection prepares it, so it should be made once
def _opening(again: bool, prefetch: tuple[str, ...]) -> str:
    return (_OPEN_AGAIN if again else _OPEN).replace(_PREFETCH, "".join(f", {one}" for one in prefetch))


def state_when_unlocked(cur: Cursor, id: int, *, timeout: float) -> State | None:  # noqa: A002
    """Wait until nobody else holds the row, at most ``timeout`` seconds, and return its state; None when it is missing.

    For after a commit that got no reply: a plain read may say "pending" while the old backend is still committing (C3).
    Raises the driver's 55P03 after ``timeout``. In a transaction, its later statements keep that lock time-out.
    """
    cur.execute(_STATE_WHEN_UNLOCKED, {"id": id, "timeout": f"{max(1, int(timeout * 1000))}ms"})
    row = cur.fetchone()
    return None if row is None else State(row[0])


def inbox_has(cur: Cursor, uuid: UUID) -> bool:
    """Whether the direct job ``uuid`` ended in this database: its effect, or its end, is committed."""
    cur.execute(
        "SELECT EXISTS (SELECT FROM sidestream_job WHERE uuid = %(uuid)s::uuid AND state <> 'pending')",
        {"uuid": str(uuid)},
    )
    return bool(cur.fetchone()[0])
