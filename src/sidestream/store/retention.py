"""Delete jobs that ended long ago, in bounded steps."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, fetch_one, fetch_value

# Returns the smallest id, and one above the largest. Index: the primary key.
_RANGE = "SELECT coalesce(min(id), 0) AS low, coalesce(max(id), -1) + 1 AS high FROM sidestream_job"
# Returns the next row from an id on, and whether it is old. Index: the primary key. Ids are roughly in the order of
# creation, so binary search finds the id below which rows are old, without an index on the end time.
_NEXT = f"""
    SELECT id, created_at < {UTC_NOW} - %(age)s::float8 * interval '1 second' AS old
    FROM sidestream_job WHERE id >= %(id)s::bigint ORDER BY id LIMIT 1"""
# Deletes a batch of old rows, and what belongs to them, and returns their number. Locks them, skipping locked rows.
# Index: the primary key.
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
    """Delete up to ``limit`` rows; return how many. Repeat while it returns ``limit``.

    Done and cancelled jobs go ``done_retention`` seconds after their end, failed ones after ``failed_retention``
    (None keeps them forever). Pending jobs stay, and so do those whose unique window is not over. Locked rows are
    skipped, so that no session waits.
    """
    age = done_retention if failed_retention is None else min(done_retention, failed_retention)
    below = _first_younger(cur, age)
    cur.execute(_PRUNE, {"below": below, "done": done_retention, "failed": failed_retention, "limit": limit})
    return int(fetch_value(cur))


def _first_younger(cur: Cursor, age: float) -> int:
    """Return the id below which rows were created over ``age`` seconds ago, approximately."""
    cur.execute(_RANGE)
    low, high = fetch_one(cur)
    while low < high:
        middle = (low + high) // 2
        cur.execute(_NEXT, {"id": middle, "age": age})
        row = fetch_one(cur)
        if row is not None and row.old:
            low = row.id + 1
        else:
            high = middle
    return int(low)
