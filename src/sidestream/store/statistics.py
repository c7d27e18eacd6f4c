"""Read counts, ages and latencies by queue, group and action, without locking rows."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sidestream.errors import InvalidJob
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, fetch_all

By = Literal["queue", "group", "action"]
_COLUMNS = {"queue": "queue", "group": "coalesce(group_name, '')", "action": "action"}
SAMPLE = 20_000
"""Number of newest rows that the latencies are from: an index on the end time would be written for every job."""
WINDOW = 300.0
"""Seconds before now that the latencies cover."""

# Returns one row per name that has pending jobs. Index: sidestream_job_pending or _due.
_PENDING = f"""
    SELECT {{by}} AS name, count(*) FILTER (WHERE run_at <= {UTC_NOW}) AS due,
           count(*) FILTER (WHERE run_at > {UTC_NOW} AND attempts <= forgiven) AS scheduled,
           count(*) FILTER (WHERE run_at > {UTC_NOW} AND attempts > forgiven) AS retrying,
           extract(epoch FROM {UTC_NOW} - min(run_at) FILTER (WHERE run_at <= {UTC_NOW}))::float8 AS oldest
    FROM sidestream_job WHERE state = 'pending' GROUP BY 1"""
# Returns one row per name that has failed or cancelled jobs. Index: sidestream_job_ended.
_ENDED = """
    SELECT {by} AS name, count(*) FILTER (WHERE state = 'failed') AS failed,
           count(*) FILTER (WHERE state = 'cancelled') AS cancelled
    FROM sidestream_job WHERE state IN ('failed', 'cancelled') GROUP BY 1"""
# Returns one row per name that has done jobs among the newest SAMPLE rows. Index: the primary key.
_DONE = f"""
    WITH newest AS MATERIALIZED (
        SELECT {{by}} AS name, state, created_at, run_at, started_at, ended_at
        FROM sidestream_job ORDER BY id DESC LIMIT {SAMPLE}),
    span AS (SELECT least(%(window)s::float8, CASE WHEN count(*) < {SAMPLE} THEN %(window)s::float8
                          ELSE extract(epoch FROM {UTC_NOW} - min(created_at)) END) AS seconds FROM newest)
    SELECT name, (count(*) * 60 / greatest(max(seconds), 1))::float8 AS done_per_minute,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
               ORDER BY greatest(0, extract(epoch FROM started_at - run_at))::float8) AS waits,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at)::float8)
               AS runs
    FROM newest, span
    WHERE state = 'done' AND started_at IS NOT NULL AND ended_at > {UTC_NOW} - seconds * interval '1 second'
    GROUP BY name"""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of one queue, group or action."""

    #: "" for the jobs without a group.
    name: str
    #: Pending and due.
    due: int = 0
    #: Pending, not due, never failed.
    scheduled: int = 0
    #: Pending, not due, failed before.
    retrying: int = 0
    failed: int = 0
    cancelled: int = 0
    #: Seconds for which the oldest due job has been due; None when none is.
    oldest: float | None = None
    #: Jobs done a minute, and seconds from due to started and from started to done (the last transaction's begin
    #: counts), median and 95 %: of the newest rows; None where none of them ended in the window.
    done_per_minute: float = 0.0
    wait_p50: float | None = None
    wait_p95: float | None = None
    run_p50: float | None = None
    run_p95: float | None = None


def statistics(cur: Cursor, by: By, window: float = WINDOW) -> list[Statistics]:
    """Return statistics by queue, group or action of pending, failed, cancelled, recent jobs.

    Rates and latencies are of the last ``window`` seconds, as far as the newest 20,000 rows reach back.
    """
    if by not in _COLUMNS:
        raise InvalidJob(f"Statistics by {by!r:.40} are not known; expected {', '.join(_COLUMNS)}.")
    found: dict[str, dict[str, Any]] = {}
    for statement in (_PENDING, _ENDED):
        cur.execute(statement.format(by=_COLUMNS[by]))
        for row in fetch_all(cur):
            found.setdefault(row.name, {}).update(row._asdict())
    cur.execute(_DONE.format(by=_COLUMNS[by]), {"window": window})
    for row in fetch_all(cur):
        (wait_p50, wait_p95), (run_p50, run_p95) = row.waits, row.runs
        found.setdefault(row.name, {"name": row.name}).update(
            done_per_minute=row.done_per_minute, wait_p50=wait_p50, wait_p95=wait_p95, run_p50=run_p50, run_p95=run_p95
        )
    return [Statistics(**found[name]) for name in sorted(found)]
