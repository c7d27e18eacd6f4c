"""Find the jobs that could be acquired now, while Redis is unavailable. Locks no row."""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sidestream.job.job import LOWEST_PRIORITY
from sidestream.job.rules import DEFAULT_AGING
from sidestream.store.acquire import has_predecessor
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor, fetch_all
from sidestream.store.job_row import NAMES, OF_J, JobRow, read_job_row

WIDE = 10_000
"""Number of the oldest due jobs of a queue and priority that are examined when the first few are not enough."""
WIDEST = 400_000
"""The number when these are not enough either, because one key has very many jobs."""
FOR_EVER = 1e9
"""Longest aging in seconds that PostgreSQL can subtract from now."""

LEVELS = f"generate_series(0, {LOWEST_PRIORITY}) AS level (priority)"
# Returns candidates by queue in order of priority, and in each row whether more could be found with a larger window;
# one row of NULLs when there are none. Run it at READ COMMITTED. Index: sidestream_job_due, then sidestream_job_key.
# Of a key's jobs among the oldest, only the first can be the head, so only for that one the query looks for a
# predecessor.
_CANDIDATES = f"""
    WITH oldest AS MATERIALIZED (
        SELECT due.* FROM unnest(%(queues)s::text[]) AS wanted (queue) CROSS JOIN {LEVELS} CROSS JOIN LATERAL (
            SELECT {NAMES} FROM sidestream_job
            WHERE state = 'pending' AND queue = wanted.queue AND priority = level.priority AND run_at <= {UTC_NOW}
            /* passed over */
            ORDER BY run_at, id LIMIT %(window)s::integer) due),
    placed AS (SELECT *, row_number() OVER (PARTITION BY key ORDER BY id) AS place FROM oldest),
    fit AS (
        SELECT *, run_at < {UTC_NOW} - %(aging)s::float8 * interval '1 second'
                  AND priority > min(priority) OVER (PARTITION BY queue) AS aged
        FROM placed p
        WHERE (p.key IS NULL OR p.place = 1) AND p.id <> ALL (%(excluded)s::bigint[]) AND NOT ({has_predecessor("p")})),
    ranked AS (
        SELECT *, row_number() OVER (
            PARTITION BY queue, aged ORDER BY CASE WHEN aged THEN 0 ELSE priority END, run_at, id) AS turn FROM fit)
    SELECT EXISTS (SELECT FROM oldest GROUP BY queue, priority HAVING count(*) = %(window)s::integer) AS more,
           j.aged, {OF_J}
    FROM (SELECT) always LEFT JOIN ranked j ON j.turn <= %(limit)s::integer ORDER BY j.aged, j.priority, j.run_at, j.id
    """
_PASSED_OVER = {
    "actions": "AND action <> ALL (%(actions)s::text[])",
    "groups": "AND (group_name IS NULL OR group_name <> ALL (%(groups)s::text[]))",
    "pairs": "AND (group_name IS NULL OR (action, group_name) NOT IN (SELECT * FROM unnest("
    "%(pair_actions)s::text[], %(pair_groups)s::text[])))",
    "limits": "AND (limit_key IS NULL OR limit_key <> ALL (%(limits)s::text[]))",
    "limit_rules": "AND (limit_key IS NULL OR split_part(limit_key, ':', 1) <> ALL (%(limit_rules)s::text[]))",
}


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Which jobs to leave out, by the values of their columns."""

    actions: Collection[str] = ()
    groups: Collection[str] = ()
    #: Actions of a group: (action, group).
    pairs: Collection[tuple[str, str]] = ()
    #: Limit keys.
    limits: Collection[str] = ()
    #: Limit keys' rules.
    limit_rules: Collection[str] = ()


class Candidate(NamedTuple):
    """A job that could be acquired now."""

    job: JobRow
    #: Its priority is lower than that of its queue's first job, and it has been due for longer than the aging time.
    aged: bool


def candidates(
    cur: Cursor,
    queues: Sequence[str],
    limit: int,
    *,
    excluded: Collection[int] = (),
    passed_over: PassedOver = PassedOver(),
    aging: float = DEFAULT_AGING,
) -> list[Candidate]:
    """Return up to ``limit`` jobs per queue by priority, and as many aged ones.

    Within a priority the oldest due job is first, then the lowest id; aged jobs are ordered by time alone. Running jobs
    are included; :func:`~sidestream.store.acquire.acquire_job` decides. Jobs behind an earlier job of their key are
    left out, so up to :data:`WIDEST` jobs of one key do not hide the others.
    """
    parameters = {
        "queues": list(dict.fromkeys(queues)),
        "limit": limit,
        "excluded": list(excluded),
        "aging": min(aging, FOR_EVER),
        "actions": list(passed_over.actions),
        "groups": list(passed_over.groups),
        "pair_actions": [action for action, _ in passed_over.pairs],
        "pair_groups": [group for _, group in passed_over.pairs],
        "limits": list(passed_over.limits),
        "limit_rules": list(passed_over.limit_rules),
    }
    conditions = " ".join(text for name, text in _PASSED_OVER.items() if getattr(passed_over, name))
    statement = _CANDIDATES.replace("/* passed over */", conditions)
    found: list[Candidate] = []
    for window in (4 * limit + len(excluded), WIDE, WIDEST):
        cur.execute(statement, {**parameters, "window": window})
        rows = fetch_all(cur)
        found = [Candidate(read_job_row(row), row.aged) for row in rows if row.id is not None]
        if len(found) >= limit or not rows[0].more:
            break
    return found
