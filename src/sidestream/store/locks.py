"""Session-level advisory locks: what a job holds beyond its transaction.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS
"""

from __future__ import annotations

from collections.abc import Iterable

from sidestream.job.names import tag
from sidestream.store.cursor import Cursor

_HELD = """
    SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

# Whoever locks a row writes the number of its transaction into xmax; each holds a lock on that number until it is over.
# An enqueuer that looks for duplicates does so too: only the sessions of workers' children, which are called
# sidestream/<worker>/<slot>, run jobs. https://www.postgresql.org/docs/current/view-pg-locks.html
_ROWS_HELD = """
    SELECT j.id FROM sidestream_job j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'pending' AND EXISTS (
        SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'transactionid' AND l.transactionid = j.xmax AND l.granted
        AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid() AND a.application_name ~ '^sidestream/.+/[0-9]+$')"""


_ALL_ROWS_HELD = """
    SELECT id FROM sidestream_job WHERE state = 'pending' AND xmax IN (
        SELECT transactionid FROM pg_locks WHERE locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock')"""
# One that is between two of its transactions holds no row. Its worker notes that it began after half a second.
_STARTED = """
    SELECT DISTINCT a.job_id FROM sidestream_attempt a JOIN sidestream_job j ON j.id = a.job_id AND j.state = 'pending'
    WHERE a.event = 'started'"""


def job_lock(row_id: int) -> bytes:
    """Return the 8 bytes that stand for the job itself: held by one that has several transactions, until it ends."""
    return tag(f"job {row_id}", 8)


def lock_tag(cur: Cursor, lock: bytes) -> bool:
    """Take the session's advisory lock that 8 bytes stand for, without waiting; False when another session has it."""
    cur.execute("SELECT pg_try_advisory_lock(%(lock)s::bigint)", {"lock": _number(lock)})
    return bool(cur.fetchone()[0])


def lock_tag_in_transaction(cur: Cursor, lock: bytes) -> bool:
    """As :func:`lock_tag`, until the transaction ends."""
    cur.execute("SELECT pg_try_advisory_xact_lock(%(lock)s::bigint)", {"lock": _number(lock)})
    return bool(cur.fetchone()[0])


def wait_for_tag(cur: Cursor, lock: bytes) -> None:
    """As :func:`lock_tag`, but wait until nobody else has it."""
    cur.execute("SELECT pg_advisory_lock(%(lock)s::bigint)", {"lock": _number(lock)})


def held_tags(cur: Cursor) -> set[bytes]:
    """Return the locks that any session holds in this database, its own ones included."""
    cur.execute(_HELD)
    return {number.to_bytes(8, "big", signed=True) for (number,) in cur.fetchall()}


def unlock_tag(cur: Cursor, lock: bytes) -> bool:
    """Free what :func:`lock_tag` took; False when this session did not have it."""
    cur.execute("SELECT pg_advisory_unlock(%(lock)s::bigint)", {"lock": _number(lock)})
    return bool(cur.fetchone()[0])


def running_between(cur: Cursor, row_ids: Iterable[int]) -> set[int]:
    """Return which of these jobs are between two of their transactions: they run, and nobody has their rows."""
    held = held_tags(cur)
    return {row_id for row_id in row_ids if job_lock(row_id) in held} if held else set()


def running_jobs(cur: Cursor, row_ids: Iterable[int]) -> set[int]:
    """Return which of these pending jobs run: whose rows a transaction that is not over holds, or that are between two.

    Takes no lock, so no worker finds a row taken. What the caller's own transaction holds does not run.
    """
    ids = set(row_ids)
    if not ids:
        return set()
    cur.execute(_ROWS_HELD, {"ids": sorted(ids)})
    found = {row_id for (row_id,) in cur.fetchall()}
    return found | running_between(cur, ids - found)


def all_running_jobs(cur: Cursor) -> set[int]:
    """Return every pending job that runs now, as :func:`running_jobs` tells; reads all pending rows."""
    cur.execute(_ALL_ROWS_HELD)
    found = {row_id for (row_id,) in cur.fetchall()}
    cur.execute(_STARTED)
    return running_jobs(cur, found.union(row_id for (row_id,) in cur.fetchall()))


def _number(lock: bytes) -> int:
    return int.from_bytes(lock, "big", signed=True)
