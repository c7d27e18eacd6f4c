"""Counts, ages and latencies by queue, group and action: what pages and commands show at a glance. No lock is taken."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidestream.errors import InvalidJob
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor

By = Literal["queue", "group", "action"]
_COLUMNS = {"queue": "queue", "group": "coalesce(group_name, '')", "action": "action"}
SAMPLE = 20_000
"""How many of the newest rows tell the latencies: an index on the time of ending would be written for every job."""
WINDOW = 300.0
"""Seconds back from now that the latencies are about."""

_OPEN = f"""
    SELECT {{by}}, count(*) FILTER (WHERE run_at <= {UTC_NOW}),
           count(*) FILTER (WHERE run_at > {UTC_NOW} AND attempts <= forgiven),
           count(*) FILTER (WHERE run_at > {UTC_NOW} AND attempts > forgiven),
           extract(epoch FROM {UTC_NOW} - min(run_at) FILTER (WHERE run_at <= {UTC_NOW}))::float8
    FROM sidestream_job WHERE state = 'pending' GROUP BY 1"""
_ENDED = "SELECT {by}, state, count(*) FROM sidestream_job WHERE state IN ('failed', 'cancelled') GROUP BY 1, 2"
_DONE = f"""
    WITH newest AS MATERIALIZED (
        SELECT {{by}} AS name, state, created_at, run_at, started_at, ended_at
        FROM sidestream_job ORDER BY id DESC LIMIT {SAMPLE}),
    span AS (SELECT least(%(window)s::float8, CASE WHEN count(*) < {SAMPLE} THEN %(window)s::float8
                          ELSE extract(epoch FROM {UTC_NOW} - min(created_at)) END) AS seconds FROM newest)
    SELECT name, count(*) * 60 / greatest(max(seconds), 1),
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
               ORDER BY greatest(0, extract(epoch FROM started_at - run_at))::float8),
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - started_at)::float8)
    FROM newest, span
    WHERE state = 'done' AND started_at IS NOT NULL AND ended_at > {UTC_NOW} - seconds * interval '1 second'
    GROUP BY name"""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What stands behind one queue, group or action."""

    #: "" for the jobs without a group.
    name: str
    #: Open and due.
    due: int = 0
    #: Open, not due, never failed.
    scheduled: int = 0
    #: Open, not due, failed before.
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
    """Return one line for each queue, group or action that has rows which are open, dead, cancelled or just done.

    Rates and latencies are of the last ``window`` seconds, as far as the newest 20,000 rows reach back.
    """
    if by not in _COLUMNS:
        raise InvalidJob(f"Statistics by {by!r:.40} are not known; expected {', '.join(_COLUMNS)}.")
    found: dict[str, dict[str, float | None]] = {}
    cur.execute(_OPEN.format(by=_COLUMNS[by]))
    for name, due, scheduled, retrying, oldest in cur.fetchall():
        found[name] = {"due": due, "scheduled": scheduled, "retrying": retrying, "oldest": oldest}
    cur.execute(_ENDED.format(by=_COLUMNS[by]))
    for name, state, count in cur.fetchall():
        found.setdefault(name, {})[state] = count
    cur.execute(_DONE.format(by=_COLUMNS[by]), {"window": window})
    for name, rate, waits, runs in cur.fetchall():
        found.setdefault(name, {}).update(
            done_per_minute=float(rate), wait_p50=waits[0], wait_p95=waits[1], run_p50=runs[0], run_p95=runs[1]
        )
    return [Statistics(name, **values) for name, values in sorted(found.items())]  # type: ignore[arg-type]
