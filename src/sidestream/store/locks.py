"""Take and read advisory locks, and find out which jobs run.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS
"""

from __future__ import annotations

from collections.abc import Iterable

from sidestream.store.cursor import Cursor, fetch_ids, fetch_value

# Returns the numbers of the advisory locks that sessions of this database hold.
_HELD = """
    SELECT (classid::bigint << 32) | objid::bigint AS number FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
NOT_BETWEEN = f"id <> ALL (ARRAY(SELECT number # (1::bigint << 63) FROM ({_HELD}) held))"  # noqa: S608  # a constant
"""The SQL condition that a row's job is not between two of its transactions, where it runs with its row unlocked."""
# Returns the sessions that hold the row of a job, or one of these advisory locks. Index: the primary key.
HOLDERS = """
    SELECT pid FROM pg_locks WHERE granted AND CASE locktype
        WHEN 'transactionid' THEN mode = 'ExclusiveLock'
            AND transactionid = (SELECT xmax FROM sidestream_job WHERE id = %(id)s::bigint)
        WHEN 'advisory' THEN objsubid = 1 AND (classid::bigint << 32) | objid::bigint = ANY (%(locks)s::bigint[]) END"""
# Returns which of these pending rows a child of a worker has locked. Index: the primary key. A transaction that locks
# a row writes its number into xmax, and holds a lock on that number until it ends. An enqueuer that looks for
# duplicates does so too, but only the sessions of workers' children, which are named sidestream/<worker>/<slot>, run
# jobs. https://www.postgresql.org/docs/current/view-pg-locks.html
_ROWS_HELD = """
    SELECT j.id FROM sidestream_job j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'pending' AND EXISTS (
        SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'transactionid' AND l.transactionid = j.xmax AND l.granted
        AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid() AND a.application_name ~ '^sidestream/.+/[0-9]+$')"""
# Returns the pending rows that any open transaction has locked. Index: sidestream_job_pending; reads all pending rows.
_ALL_ROWS_HELD = """
    SELECT id FROM sidestream_job WHERE state = 'pending' AND xmax IN (
        SELECT transactionid FROM pg_locks WHERE locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock')"""
# Returns the pending jobs that were started. Index: sidestream_attempt_started. A job between two of its transactions
# holds no row, but its worker records the start after half a second.
_STARTED = """
    SELECT DISTINCT a.job_id FROM sidestream_attempt a JOIN sidestream_job j ON j.id = a.job_id AND j.state = 'pending'
    WHERE a.event = 'started'"""


def job_lock(row_id: int) -> bytes:
    """Return the lock of a job, which one with several transactions holds until it ends: its id, the top bit set."""
    return (row_id | 1 << 63).to_bytes(8, "big")


def lock_tag(cur: Cursor, lock: bytes) -> bool:
    """Take a session-level advisory lock without waiting; False if another session holds it."""
    cur.execute("SELECT pg_try_advisory_lock(%(lock)s::bigint)", {"lock": number(lock)})
    return bool(fetch_value(cur))


def lock_tag_in_transaction(cur: Cursor, lock: bytes) -> bool:
    """Take the lock as :func:`lock_tag` does, until the transaction ends."""
    cur.execute("SELECT pg_try_advisory_xact_lock(%(lock)s::bigint)", {"lock": number(lock)})
    return bool(fetch_value(cur))


def wait_for_tag(cur: Cursor, lock: bytes) -> None:
    """Take the lock as :func:`lock_tag` does, but wait until no other session holds it."""
    cur.execute("SELECT pg_advisory_lock(%(lock)s::bigint)", {"lock": number(lock)})


def held_tags(cur: Cursor) -> set[bytes]:
    """Return the locks that sessions hold in this database, including this one."""
    cur.execute(_HELD)
    return {number.to_bytes(8, "big", signed=True) for (number,) in cur.fetchall()}


def unlock_tag(cur: Cursor, lock: bytes) -> bool:
    """Release what :func:`lock_tag` took; False when this session did not hold it."""
    cur.execute("SELECT pg_advisory_unlock(%(lock)s::bigint)", {"lock": number(lock)})
    return bool(fetch_value(cur))


def running_between(cur: Cursor, row_ids: Iterable[int]) -> set[int]:
    """Return which of these jobs run between two transactions, without a row lock."""
    held = held_tags(cur)
    return {row_id for row_id in row_ids if job_lock(row_id) in held} if held else set()


def running_jobs(cur: Cursor, row_ids: Iterable[int]) -> set[int]:
    """Return which of these pending jobs run, in or between their transactions.

    It takes no lock, so no worker finds a row locked. A row that the caller's own transaction holds does not count.
    """
    ids = set(row_ids)
    if not ids:
        return set()
    cur.execute(_ROWS_HELD, {"ids": sorted(ids)})
    found = fetch_ids(cur)
    return found | running_between(cur, ids - found)


def all_running_jobs(cur: Cursor) -> set[int]:
    """Return every pending job that runs now; this reads all pending rows."""
    cur.execute(_ALL_ROWS_HELD)
    found = fetch_ids(cur)
    cur.execute(_STARTED)
    return running_jobs(cur, found | fetch_ids(cur))


def number(lock: bytes) -> int:
    """Return the number under which PostgreSQL knows a lock."""
    return int.from_bytes(lock, "big", signed=True)
