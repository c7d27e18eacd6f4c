"""``sidestream queues`` and ``sidestream init-db``: the backlogs, and the tables that they are in."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import print_json, print_line, print_table
from sidestream.errors import SettingsError

if TYPE_CHECKING:
    from sidestream.job.rules import Rules


KINDS = ("queue", "group", "action")


def queues(
    context: typer.Context,
    *,
    by: Annotated[str, typer.Option(help="One line for each queue, group or action.")] = "queue",
    as_json: AsJson = False,
) -> None:
    """Count the jobs of each queue (group, action) by what they wait for; say how old and how late they are."""
    from sidestream.store import rules
    from sidestream.store.statistics import statistics
    from sidestream.wiring.client import store_cursor

    if by not in KINDS:
        raise SettingsError(f"--by {by!r:.40} is not known; expected {', '.join(KINDS)}.")
    kinds: tuple[Any, ...] = KINDS if as_json else (by,)
    with store_cursor(options_of(context).settings()) as cursor:
        found = {kind: statistics(cursor, kind) for kind in kinds}
        paused = _paused(rules.read(cursor))
    lines = {
        kind: [{**asdict(one), "paused": (kind, one.name) in paused} for one in listed]
        for kind, listed in found.items()
    }
    if as_json:
        print_json({f"{kind}s": [{kind: line.pop("name"), **line} for line in lines[kind]] for kind in kinds})
    elif not lines[by]:
        print_line(f"No {by} has jobs that are open, dead, cancelled or just done.")
    else:
        print_table(
            (
                by.upper(),
                "DUE",
                "SCHEDULED",
                "RETRYING",
                "DEAD",
                "OLDEST",
                "DONE/MIN",
                "WAIT P50",
                "P95",
                "RUN P50",
                "P95",
            ),
            [
                (
                    (line["name"] or "(none)") + (" (paused)" if line["paused"] else ""),
                    *(line[name] for name in ("due", "scheduled", "retrying", "failed")),
                    _span(line["oldest"]),
                    f"{line['done_per_minute']:.0f}",
                    *(_span(line[name]) for name in ("wait_p50", "wait_p95", "run_p50", "run_p95")),
                )
                for line in lines[by]
            ],
        )


def _paused(found: Rules) -> set[tuple[str, str]]:
    """Return what is paused as a whole, as (kind, name)."""
    names: set[tuple[str, str]] = set()
    for one in found.pauses:
        if one.queue is not None:
            names.add(("queue", one.queue))
        elif one.action is not None and one.group is None:
            names.add(("action", one.action))
        elif one.group is not None and one.action is None:
            names.add(("group", one.group))
    return names


def _span(seconds: float | None) -> str:
    """Write a length of time in the unit that a person would use."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def init_db(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Create Sidestream's tables in the database; safe to repeat."""
    from sidestream.store import schema
    from sidestream.wiring.client import store_cursor

    with store_cursor(options_of(context).settings()) as cursor:
        database = schema.install(cursor)
    if as_json:
        print_json({"database": database.uuid, "version": schema.SCHEMA_VERSION})
    else:
        print_line(f"The tables are there, version {schema.SCHEMA_VERSION}; this database is {database.uuid}.")


def adopt(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Let a copied, restored or moved database run its pending jobs here, under an identity of its own."""
    from sidestream.store import schema
    from sidestream.wiring.client import store_cursor

    settings = options_of(context).settings()
    with store_cursor(settings) as cursor:
        database = schema.adopt(cursor, settings.instance)
    if as_json:
        print_json({"database": database.uuid})
    else:
        print_line(f"This database is now {database.uuid}; a worker that runs begins anew within seconds.")
