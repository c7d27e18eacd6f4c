"""End the PostgreSQL sessions of workers that died or lost a job, so that a lock does not outlive its owner.

A backend that executes a statement notices the death of its client late, or never when the client's host is gone.
Ending it is always safe: its transaction is committed or not, and the row shows which. It needs the workers' role.
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sidestream.store.cursor import Cursor, fetch_one, fetch_value
from sidestream.store.locks import HOLDERS, number

PATIENCE = 5.0
"""Seconds to wait for one backend to end."""
PATIENCE_EACH = 1.0
"""Seconds to wait for each of several backends."""

# Ends sessions and returns whether all are gone, and how many there were. pg_terminate_backend waits for the process to
# end, so its locks are free when it returns true. The name is compared because process numbers are reused.
_TERMINATE = """
    SELECT coalesce(bool_and(pg_terminate_backend(pid, %(patience)s::bigint)), true) AS gone, count(*) AS found
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND """
# Returns whether another worker has a session in this database.
_OTHERS = """
    SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
        AND application_name LIKE 'sidestream/%%/%%' AND NOT starts_with(application_name, %(own)s::text))"""


def terminate_backend(cur: Cursor, pid: int, application_name: str, *, patience: float = PATIENCE) -> bool:
    """End the backend ``pid`` if its name is ``application_name``, and wait until it is gone.

    Returns True when no such backend is left, False when it still exists after ``patience`` seconds. With 0 it does not
    wait: call it again.
    """
    cur.execute(
        _TERMINATE + "pid = %(pid)s::integer AND application_name = %(name)s::text",
        {"pid": pid, "name": application_name, "patience": int(patience * 1000)},
    )
    ended = fetch_one(cur)
    return not ended.found or bool(ended.gone and patience)


def server_started(cur: Cursor) -> datetime:
    """Return when the server started; it is not a start when one of its processes crashes."""
    cur.execute("SELECT pg_postmaster_start_time()")
    found: datetime = fetch_value(cur)
    return found


def has_others(cur: Cursor, worker: str) -> bool:
    """Return whether another worker than ``worker`` has a session in this database."""
    cur.execute(_OTHERS, {"own": f"sidestream/{worker}/"})
    return bool(fetch_value(cur))


def terminate_holders(cur: Cursor, worker: str, job_id: int, locks: Sequence[bytes]) -> int:
    """End the sessions of ``worker`` that hold the row of a job or one of its session ``locks``; return how many."""
    locked = [number(lock) for lock in locks]
    return _terminate(cur, worker, PATIENCE_EACH, f"pid IN ({HOLDERS})", id=job_id, locks=locked)[1]


def terminate_worker(cur: Cursor, worker: str, *, patience: float = PATIENCE_EACH) -> tuple[bool, int]:
    """End every other session of ``worker``, waiting up to ``patience`` seconds for each.

    Returns whether all are gone, and how many there were.
    """
    return _terminate(cur, worker, patience, "true")


def _terminate(cur: Cursor, worker: str, patience: float, which: str, **named: Any) -> tuple[bool, int]:
    named |= {"prefix": f"sidestream/{worker}/", "patience": int(patience * 1000)}
    cur.execute(f"{_TERMINATE} starts_with(application_name, %(prefix)s::text) AND {which}", named)
    ended = fetch_one(cur)
    return bool(ended.gone), ended.found
