"""D2: the one statement that opens a job, and what its answer means.

Call :func:`open_job` first in the job's transaction, at REPEATABLE READ. Its own snapshot then proves two things at
once: that nothing stands before the job, and that the effects of all that stood before it are visible.

1. :func:`lock_tag`, when the job has a key: in a statement of its own *before* BEGIN. A lock taken inside the
   transaction would come after its snapshot, and the holder before us would be over but not visible (C5).
2. :func:`open_job`. Serialization failures (40001: the row changed after the snapshot) come out as they are; the
   executor's loop tries again with a new snapshot.
3. :func:`sidestream.store.rows.finish` in the same transaction.
4. :func:`unlock_tag`.
"""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from sidestream.job.states import State
from sidestream.store.cursor import Cursor
from sidestream.store.written import UTC_NOW

_DUE = f"run_at <= {UTC_NOW} + interval '1 second'"
"""A job may be opened up to a second early: Redis and PostgreSQL have clocks of their own (C23)."""


def before_in_line(job: str) -> str:
    """Return the condition that the row ``before`` stands before the row ``job`` in its key's line (promise 4).

    "Due" is the same with the same tolerance for both, else a job that is opened early could pass one due before it.
    """
    return f"""before.state = 'open' AND before.key = {job}.key AND before.id < {job}.id
        AND (before.{_DUE} OR before.attempts > 0)"""


def standing_before(job: str) -> str:
    """Return the condition that any row stands before the row ``job`` in its key's line."""
    return f"{job}.key IS NOT NULL AND EXISTS (SELECT FROM sidestream_job before WHERE {before_in_line(job)})"


_ALONG = "/* along */"
_OPENED = f"""
    -- "sidestream.job" lasts as long as this transaction: rows.finish asks for it. MATERIALIZED, because it must not be
    -- set for a row that turns out to be locked.
    SELECT set_config('sidestream.job', id::text, true), pg_backend_pid(), id, action, payload, queue, key, attempts,
           forgiven, crashes, suspects, user_id, context{_ALONG} FROM mine"""
_NOT_CANCELLED = """NOT EXISTS (
    SELECT FROM sidestream_control c WHERE c.job_id = j.id AND c.handled_at IS NULL AND c.request = 'cancel')"""
_OPEN = f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM sidestream_job j
        WHERE j.id = %(id)s::bigint AND j.state = 'open' AND j.{_DUE} AND {_NOT_CANCELLED}
        AND NOT ({standing_before("j")})
        FOR NO KEY UPDATE OF j SKIP LOCKED)
    {_OPENED}"""
# A job between two of its own transactions holds a session lock and has its place already: neither its time nor its
# line is asked again, only that nobody ended it or charged an attempt meanwhile.
_OPEN_AGAIN = f"""
    WITH mine AS MATERIALIZED (
        SELECT * FROM sidestream_job j
        WHERE j.id = %(id)s::bigint AND j.state = 'open' AND j.attempts = %(seen)s::integer AND {_NOT_CANCELLED}
        FOR NO KEY UPDATE OF j SKIP LOCKED)
    {_OPENED}"""
_WHY_NOT = f"""
    SELECT j.state, extract(epoch FROM j.run_at - {UTC_NOW})::float8, NOT j.{_DUE}, NOT {_NOT_CANCELLED},
           (SELECT min(before.id) FROM sidestream_job before WHERE {before_in_line("j")}), j.attempts
    FROM sidestream_job j WHERE j.id = %(id)s::bigint"""
# In one statement, so that the time-out neither waits for a transaction nor outlives one in autocommit mode.
_STATE_WHEN_UNLOCKED = """
    WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', %(timeout)s::text, true))
    SELECT j.state FROM patience, sidestream_job j WHERE j.id = %(id)s::bigint FOR NO KEY UPDATE OF j"""


@dataclass(frozen=True, slots=True)
class Opened:
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
    #: The values of ``along``.
    along: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Terminal:
    """It is over: settle the delivery."""

    state: State


@dataclass(frozen=True, slots=True)
class Missing:
    """No such row: its transaction, or its savepoint, was rolled back, or it was pruned. Settle the delivery."""


@dataclass(frozen=True, slots=True)
class NotDue:
    """Its row says later."""

    #: Until then.
    seconds: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """Open jobs with the same key stand before it."""

    #: The smallest id of them.
    by: int


@dataclass(frozen=True, slots=True)
class Cancelling:
    """A person asked to cancel it while its row was locked; a supervisor has to carry that out."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Only when opened again: somebody else charged an attempt meanwhile, the job is no longer the caller's."""

    attempts: int


@dataclass(frozen=True, slots=True)
class Locked:
    """Another session holds the row: it runs elsewhere, or a person edits it."""


Opening = Opened | Terminal | Missing | NotDue | Blocked | Cancelling | Moved | Locked


def open_job(
    cur: Cursor,
    id: int,  # noqa: A002
    *,
    attempts_seen: int | None = None,
    along: tuple[str, ...] = (),
) -> Opening:
    """Lock the job's row and read it, or say why not (a second, plain read).

    ``along``: SQL expressions (of the caller's own constants) that are read in the same statement, as
    :attr:`Opened.along`; the job's row is called ``mine`` in them.

    ``attempts_seen``: give it in the second and later transactions of a three-step or ``relock`` job, which holds a
    session lock; the job is then opened in the state it was in, whatever became due before it meanwhile.
    """
    cur.execute(_opening(attempts_seen is not None, along), {"id": id, "seen": attempts_seen})
    row = cur.fetchone()
    if row is not None:
        return _opened(row)
    cur.execute(_WHY_NOT, {"id": id})
    row = cur.fetchone()
    if row is None:
        return Missing()
    state, seconds, early, cancelling, blocked_by, attempts = row
    if state != State.OPEN:
        return Terminal(State(state))
    if cancelling:
        return Cancelling()
    if attempts_seen is not None:
        return Moved(attempts) if attempts != attempts_seen else Locked()
    if early:
        return NotDue(seconds)
    if blocked_by is not None:
        return Blocked(blocked_by)
    return Locked()


@cache  # the text is the name under which a connection prepares it, so it should be made once
def _opening(again: bool, along: tuple[str, ...]) -> str:
    return (_OPEN_AGAIN if again else _OPEN).replace(_ALONG, "".join(f", {one}" for one in along))


def _opened(row: Sequence[Any]) -> Opened:
    _, backend_pid, found, action, payload, queue, key, attempts, forgiven, crashes, suspects, user, context = row[:13]
    return Opened(
        found,
        action,
        payload,
        queue,
        key,
        attempts,
        forgiven,
        crashes,
        suspects,
        backend_pid,
        user,
        context,
        tuple(row[13:]),
    )


def state_when_unlocked(cur: Cursor, id: int, *, timeout: float) -> State | None:  # noqa: A002
    """Wait until nobody else holds the row, at most ``timeout`` seconds, and return its state; None when it is missing.

    For after a commit that got no reply: a plain read may say "open" while the old backend is still committing (C3).
    Raises the driver's 55P03 after ``timeout``. In a transaction, its later statements keep that lock time-out.
    """
    cur.execute(_STATE_WHEN_UNLOCKED, {"id": id, "timeout": f"{max(1, int(timeout * 1000))}ms"})
    row = cur.fetchone()
    return None if row is None else State(row[0])


def inbox_has(cur: Cursor, uuid: UUID) -> bool:
    """Whether the direct job ``uuid`` ended in this database: its effect, or its end, is committed."""
    cur.execute(
        "SELECT EXISTS (SELECT FROM sidestream_job WHERE uuid = %(uuid)s::uuid AND state <> 'open')",
        {"uuid": str(uuid)},
    )
    return bool(cur.fetchone()[0])


def lock_tag(cur: Cursor, lock: bytes) -> bool:
    """Take the session's advisory lock that 8 bytes stand for, without waiting; False when another session has it.

    https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS
    """
    cur.execute("SELECT pg_try_advisory_lock(%(lock)s::bigint)", {"lock": _number(lock)})
    return bool(cur.fetchone()[0])


def unlock_tag(cur: Cursor, lock: bytes) -> bool:
    """Free what :func:`lock_tag` took; False when this session did not have it."""
    cur.execute("SELECT pg_advisory_unlock(%(lock)s::bigint)", {"lock": _number(lock)})
    return bool(cur.fetchone()[0])


def _number(lock: bytes) -> int:
    return int.from_bytes(lock, "big", signed=True)
