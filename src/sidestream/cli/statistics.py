"""Print the statistics of queues, groups and actions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import typer

from sidestream.cli.options import cursor_of
from sidestream.cli.output import print_json, print_line, print_table
from sidestream.job.rules import Pause

_COLUMNS = ("DUE", "SCHEDULED", "RETRYING", "FAILED", "OLDEST", "DONE/MIN", "WAIT P50", "P95", "RUN P50", "P95")


def list_statistics(context: typer.Context, by: Literal["queue", "group", "action"], *, as_json: bool) -> None:
    """Print one line for each queue, group or action that has jobs: counts, age and latencies."""
    from sidestream.store import rules
    from sidestream.store.statistics import statistics

    with cursor_of(context) as cursor:
        found = statistics(cursor, by)
        pauses = rules.read(cursor).pauses
    lines = [{**asdict(one), "paused": bool(one.name) and Pause(**{by: one.name}) in pauses} for one in found]
    if as_json:
        print_json({f"{by}s": [{by: line.pop("name"), **line} for line in lines]})
    elif not lines:
        print_line(f"No {by} has jobs that are pending, failed, cancelled or recently done.")
    else:
        print_table(
            (by.upper(), *_COLUMNS),
            [
                (
                    (line["name"] or "(none)") + (" (paused)" if line["paused"] else ""),
                    *(line[name] for name in ("due", "scheduled", "retrying", "failed")),
                    _span(line["oldest"]),
                    f"{line['done_per_minute']:.0f}",
                    *(_span(line[name]) for name in ("wait_p50", "wait_p95", "run_p50", "run_p95")),
                )
                for line in lines
            ],
        )


def _span(seconds: float | None) -> str:
    """Write a duration in a readable unit."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"
