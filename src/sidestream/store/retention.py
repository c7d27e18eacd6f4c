"""Forget what ended long ago, in bounded steps."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor

# Rows end after they were made, and ids are given roughly in the order of making: so the old ones lie below an id that
# is found by halving, and no index on the time of ending has to be written for every job.
_NEXT = "SELECT id, created_at < {cutoff} FROM sidestream_job WHERE id >= %(id)s::bigint ORDER BY id LIMIT 1"
_CUTOFF = f"({UTC_NOW} - %(age)s::float8 * interval '1 second')"
_PRUNE = f"""
    WITH old AS MATERIALIZED (
        SELECT id FROM sidestream_job
        WHERE id < %(below)s::bigint AND CASE state
            WHEN 'done' THEN ended_at < {UTC_NOW} - %(done)s::float8 * interval '1 second'
            WHEN 'cancelled' THEN ended_at < {UTC_NOW} - %(done)s::float8 * interval '1 second'
            WHEN 'failed' THEN ended_at < {UTC_NOW} - %(failed)s::float8 * interval '1 second'
            ELSE false END
        AND (unique_until IS DISTINCT FROM 'window'
             OR created_at < {UTC_NOW} - unique_seconds * interval '1 second')
        ORDER BY id LIMIT %(limit)s::integer FOR UPDATE SKIP LOCKED),
    attempts AS (DELETE FROM sidestream_attempt WHERE job_id IN (SELECT id FROM old)),
    records AS (DELETE FROM sidestream_job_record WHERE job_id IN (SELECT id FROM old)),
    controls AS (DELETE FROM sidestream_control WHERE job_id IN (SELECT id FROM old)),
    pruned AS (DELETE FROM sidestream_job WHERE id IN (SELECT id FROM old) RETURNING id)
    SELECT count(*) FROM pruned"""


def prune(cur: Cursor, done_retention: float, failed_retention: float | None, limit: int) -> int:
    """Delete up to ``limit`` rows, with their attempts, and return how many; call again while it returns ``limit``.

    Done and cancelled jobs go ``done_retention`` seconds after their end, failed ones after ``failed_retention``
    (None keeps them forever). Pending jobs stay, and so do those whose unique window is not over. Locked rows are
    skipped, so that no session waits.
    """
    age = done_retention if failed_retention is None else min(done_retention, failed_retention)
    below = _first_younger(cur, age)
    cur.execute(_PRUNE, {"below": below, "done": done_retention, "failed": failed_retention, "limit": limit})
    return int(cur.fetchone()[0])


def _first_younger(cur: Cursor, age: float) -> int:
    """Return an id such that rows made more than ``age`` seconds ago lie below it, but for overlapping transactions."""
    cur.execute("SELECT coalesce(min(id), 0), coalesce(max(id), -1) + 1 FROM sidestream_job")
    low, high = cur.fetchone()
    statement = _NEXT.format(cutoff=_CUTOFF)
    while low < high:
        middle = (low + high) // 2
        cur.execute(statement, {"id": middle, "age": age})
        row = cur.fetchone()
        if row is not None and row[1]:
            low = row[0] + 1
        else:
            high = middle
    return int(low)
