"""The status of pending jobs, as lists show it: as far as PostgreSQL knows, for a page of rows in two statements."""

# ruff: noqa: S608  (every statement is made of this module's own constants; values are bound)

from __future__ import annotations

from collections.abc import Iterable

from sidestream.job.states import Status
from sidestream.store.acquire import has_predecessor
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, fetch_all
from sidestream.store.locks import running_jobs

STARTS_PER_WORKER = 256
"""How many of a worker's latest starts are searched for running jobs that use a limit."""

# Only long jobs have a row about their start. A limit that short jobs use up is free again before a person reads it.
_STARTED = f"""
    SELECT job.queue, job.action, split_part(job.limit_key, ':', 1) AS limit_name, job.limit_key
    FROM sidestream_worker w CROSS JOIN LATERAL (
        SELECT job_id FROM sidestream_attempt a WHERE a.worker = w.name AND a.event = 'started'
        ORDER BY a.id DESC LIMIT {STARTS_PER_WORKER}) start
    JOIN sidestream_job job ON job.id = start.job_id AND job.state = 'pending'"""
_IS_PAUSED = """EXISTS (SELECT FROM sidestream_rule r WHERE r.kind = 'pause'
    AND r.name IN ('', CASE r.scope WHEN 'queue' THEN j.queue ELSE j.action END)
    AND r.group_name IN ('', j.group_name))"""
_IS_LIMITED = f"""EXISTS (SELECT FROM sidestream_rule r WHERE r.kind = 'limit'
    AND CASE r.scope WHEN 'global' THEN true WHEN 'queue' THEN r.name = j.queue WHEN 'action' THEN r.name = j.action
        ELSE r.name = split_part(j.limit_key, ':', 1) END
    AND (r.rate = 0 OR r.concurrency <= (
        SELECT count(*) FROM ({_STARTED}) started WHERE CASE r.scope WHEN 'global' THEN true
            WHEN 'queue' THEN started.queue = r.name WHEN 'action' THEN started.action = r.name
            ELSE started.limit_key = j.limit_key END)))"""
# Returns the status of each pending row among these. Index: the primary key. The cause that blocks a job longest comes
# first.
_STATUSES = f"""
    SELECT j.id, CASE
        WHEN j.run_at > {UTC_NOW} AND j.attempts > j.forgiven THEN 'retrying'
        WHEN j.run_at > {UTC_NOW} THEN 'scheduled'
        WHEN {_IS_PAUSED} OR j.reason = 'upgrading' THEN 'paused'
        WHEN {has_predecessor("j")} THEN 'blocked'
        WHEN split_part(j.reason, '|', 1) IN ('unrouted', 'unreadable', 'foreign', 'no_database') THEN 'unrouted'
        WHEN {_IS_LIMITED} THEN 'limited'
        ELSE 'waiting' END AS status
    FROM sidestream_job j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.state = 'pending'"""


def pending_statuses(cur: Cursor, ids: Iterable[int]) -> dict[int, Status]:
    """Return the status of each of these rows that is pending."""
    wanted = list(ids)
    if not wanted:
        return {}
    running = running_jobs(cur, wanted)
    cur.execute(_STATUSES, {"ids": wanted})
    return {row.id: Status.RUNNING if row.id in running else Status(row.status) for row in fetch_all(cur)}
