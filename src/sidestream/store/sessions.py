"""End PostgreSQL sessions whose workers are gone: a lock does not outlive its worker (design D7, C8).

A backend that is in the middle of a statement notices the death of its client late, or never when the client's host is
gone. Ending it is safe whatever it was doing: its transaction is committed or it is not, and the row tells.
Needs the same role as the workers'. https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL
"""

from __future__ import annotations

from datetime import datetime

from sidestream.store.cursor import Cursor

PATIENCE = 5.0
"""Longest wait, in seconds, for a backend to be gone."""
PATIENCE_EACH = 1.0
"""The same for each of many."""

# pg_terminate_backend waits for the process to be gone, so its locks are free when it answers true. Its name is
# compared because the system gives the numbers of processes again.
_TERMINATE = """
    SELECT coalesce(bool_and(pg_terminate_backend(pid, %(patience)s::bigint)), true), count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND """


_OTHERS = """
    SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
        AND application_name LIKE 'sidestream/%%/%%' AND NOT starts_with(application_name, %(own)s::text))"""


def terminate_backend(cur: Cursor, pid: int, application_name: str, *, patience: float = PATIENCE) -> bool:
    """End the backend ``pid`` if it is called ``application_name``, and wait until it is gone.

    Returns True when no such backend is left, False when it is still there after ``patience`` seconds. With 0 it does
    not wait: ask again.
    """
    cur.execute(
        _TERMINATE + "pid = %(pid)s::integer AND application_name = %(name)s::text",
        {"pid": pid, "name": application_name, "patience": int(patience * 1000)},
    )
    gone, found = cur.fetchone()
    return not found or bool(gone and patience)


def server_started(cur: Cursor) -> datetime:
    """Return when the server was started; the crash of one of its processes is no start."""
    cur.execute("SELECT pg_postmaster_start_time()")
    found: datetime = cur.fetchone()[0]
    return found


def has_others(cur: Cursor, worker: str) -> bool:
    """Return whether another worker than ``worker`` has a session in this database."""
    cur.execute(_OTHERS, {"own": f"sidestream/{worker}/"})
    return bool(cur.fetchone()[0])


def terminate_supervisor(cur: Cursor, worker: str, *, patience: float = PATIENCE_EACH) -> tuple[bool, int]:
    """End every session called ``sidestream/<worker>/...`` but our own, waiting ``patience`` seconds for each.

    Returns whether all are gone, and how many there were.
    """
    cur.execute(
        _TERMINATE + "starts_with(application_name, %(prefix)s::text)",
        {"prefix": f"sidestream/{worker}/", "patience": int(patience * 1000)},
    )
    gone, found = cur.fetchone()
    return bool(gone), found
