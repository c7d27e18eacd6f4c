"""The two tables that the checker believes, and the files beside them. Nothing here is product code.

``promised`` is written in the transaction that enqueues: its committed rows are what has to happen. ``ledger`` is
written by the actions, in the transaction that ends with "done": its committed rows are what did happen. Neither has a
unique constraint, so that nothing hides a double. Direct jobs have no row of their own: their producer notes in a file
what it meant to enqueue and what was accepted, and an action without a database notes in another one that it ran.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg

SCHEMA = """
CREATE TABLE IF NOT EXISTS promised (
    token text NOT NULL, job_id bigint, key text, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS ledger (
    token text NOT NULL, job_id bigint, uuid uuid, key text, seen bigint, attempt int, pid int,
    at timestamptz DEFAULT clock_timestamp(), xid xid8 DEFAULT pg_current_xact_id());
CREATE INDEX IF NOT EXISTS ledger_key ON ledger (key, job_id);
CREATE INDEX IF NOT EXISTS ledger_at ON ledger (at);
CREATE INDEX IF NOT EXISTS ledger_token ON ledger (token);
CREATE INDEX IF NOT EXISTS promised_token ON promised (token);
"""
"""``seen`` is the highest job id with the same key that the action's own snapshot showed: proof of order by effect."""

ACCEPTED = "accepted.txt"
"""Lines ``intent TOKEN`` and ``accepted TOKEN UUID``: direct jobs as their producer saw them."""
PLAIN = "plain.txt"
"""Lines ``TOKEN``: direct jobs without a database that ran."""


def install(connection: psycopg.Connection[Any]) -> None:
    """Create the tables."""
    connection.execute(SCHEMA)


def promise(cursor: Any, token: str, job_id: int, key: str | None) -> None:
    """State, in the enqueuing transaction, that the job must have its effect once."""
    cursor.execute("INSERT INTO promised (token, job_id, key) VALUES (%s, %s, %s)", (token, job_id, key))


def enter(cursor: Any, token: str, *, job_id: int | None, uuid: Any, key: str | None, attempt: int) -> None:
    """Write the effect, and what it saw of its predecessors."""
    cursor.execute(
        "INSERT INTO ledger (token, job_id, uuid, key, seen, attempt, pid)"
        " SELECT %(token)s, %(job_id)s, %(uuid)s, %(key)s::text,"
        " (SELECT max(job_id) FROM ledger WHERE key = %(key)s::text), %(attempt)s, %(pid)s",
        {"token": token, "job_id": job_id, "uuid": uuid, "key": key, "attempt": attempt, "pid": os.getpid()},
    )


def note(path: Path, line: str) -> None:
    """Append one line in one write: a kill leaves it whole or absent."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def lines(path: Path) -> list[list[str]]:
    """Return the words of every line of a file of :func:`note`."""
    return [line.split() for line in path.read_text().splitlines()]
