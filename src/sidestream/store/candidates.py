"""What could be acquired now: the query that serves a worker while Redis is away (design D13). It takes no lock."""

# ruff: noqa: S608  (every statement is made of this room's own constants; values are bound)

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sidestream.job.job import LOWEST_PRIORITY
from sidestream.job.rules import DEFAULT_AGING
from sidestream.store.acquire import standing_before
from sidestream.store.compare_and_set import UTC_NOW
from sidestream.store.cursor import Cursor
from sidestream.store.job_row import NAMES, OF_J, JobRow, read_job_row

WIDE = 10_000
"""How many of the oldest due jobs of a queue and priority are looked at when the first few are not enough."""
WIDEST = 400_000
"""How many are looked at when these are not enough either: one key has a very long line."""
FOR_EVER = 1e9
"""Seconds of aging above which it makes no difference: what PostgreSQL can subtract from now."""

LEVELS = f"generate_series(0, {LOWEST_PRIORITY}) AS level (priority)"
# Of a key's jobs among the oldest, only the first can be its head; whether any stands before is asked for that alone.
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
        WHERE (p.key IS NULL OR p.place = 1) AND p.id <> ALL (%(excluded)s::bigint[]) AND NOT ({standing_before("p")})),
    ranked AS (
        SELECT *, row_number() OVER (
            PARTITION BY queue, aged ORDER BY CASE WHEN aged THEN 0 ELSE priority END, run_at, id) AS turn FROM fit)
    SELECT EXISTS (SELECT FROM oldest GROUP BY queue, priority HAVING count(*) = %(window)s::integer), j.aged, {OF_J}
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
    """What is not wanted now, by the rows' own words."""

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
    #: It is of a lower priority than the first of its queue, and has been ready for longer than the aging.
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
    """Return up to ``limit`` of each queue in order of priority, and as many aged ones, without the ``excluded`` ids.

    Of a priority, the oldest due first, ties by id; aged ones by their time alone. Candidates only: running ones are
    among them; :func:`~sidestream.store.acquire.acquire_job` decides. Jobs behind another of their key are left out,
    so that a line of up to :data:`WIDEST` does not hide what waits behind it. In READ COMMITTED.
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
        rows = cur.fetchall()
        found = [Candidate(read_job_row(columns), aged) for _, aged, *columns in rows if columns[0] is not None]
        if len(found) >= limit or not rows[0][0]:
            break
    return found


def open_and_due(cur: Cursor, queues: Sequence[str], limit: int, *, excluded: Collection[int] = ()) -> list[JobRow]:
    """Return up to ``limit`` of all these queues, lowest priority number first; see :func:`candidates`."""
    found = candidates(cur, queues, limit, excluded=excluded, aging=float("inf"))
    return sorted((one.job for one in found), key=lambda job: (job.priority, job.run_at, job.id))[:limit]
