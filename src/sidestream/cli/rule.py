"""``sidestream rule``: list every pause, limit and weight; and what the commands that set them share."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from sidestream.cli.options import AsJson, cursor_of, who
from sidestream.cli.output import answer, fail, print_json, print_line, print_table
from sidestream.job.durations import format_duration

if TYPE_CHECKING:
    from sidestream.job.rules import Limit, Pause
    from sidestream.store.rules import Entry

rule = typer.Typer(no_args_is_help=True, help="List the pauses, limits and weights.")


@rule.command("list")
def rule_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List every pause, limit and weight with its author, time and note."""
    list_rules(context, ("pause", "limit", "weight", "aging"), as_json=as_json)


def list_rules(context: typer.Context, kinds: tuple[str, ...], *, as_json: bool) -> None:
    """Print the rules of these kinds."""
    from sidestream.store import rules

    with cursor_of(context) as cursor:
        found = [entry for entry in rules.entries(cursor) if entry.kind in kinds]
    if as_json:
        print_json({"rules": [_plain(one) for one in found]})
    elif not found:
        print_line(f"No {kinds[0] if len(kinds) == 1 else 'rule'} is set.")
    else:
        print_table(
            ("RULE", "OF", "IS", "NOTE", "BY", "SINCE (UTC)"),
            [(one.kind, _of(one), _is(one), one.note, one.changed_by, one.changed_at) for one in found],
        )


def pause(context: typer.Context, what: Pause, note: str | None, *, as_json: bool) -> None:
    """Pause ``what`` and say so."""
    from sidestream.store import rules

    with cursor_of(context) as cursor:
        rules.pause(cursor, what, by=who(), note=note)
    sentence = f"Paused: {_words(what)}. Workers follow within a second; running jobs continue."
    answer({"paused": _named(what)}, sentence, as_json=as_json)


def resume(context: typer.Context, what: Pause, *, as_json: bool) -> None:
    """Remove the pause of ``what`` and say so, or end the command because there is none."""
    from sidestream.store import rules

    with cursor_of(context) as cursor:
        resumed = rules.resume(cursor, what)
    if not resumed:
        fail(f"There is no pause of {_words(what)}; list the pauses with 'sidestream rule list'.")
    answer({"resumed": _named(what)}, f"Resumed: {_words(what)}.", as_json=as_json)


def limit_words(found: Limit) -> str:
    """Return a limit in words."""
    parts = [] if found.concurrency is None else [f"{found.concurrency} at once"]
    if found.rate is not None:
        parts.append(f"{found.rate:g} per second" + (f", {found.burst} in a burst" if found.burst > 1 else ""))
    return " and ".join(parts)


def _named(what: Pause) -> dict[str, str]:
    parts = {"queue": what.queue, "action": what.action, "group": what.group}
    return {name: value for name, value in parts.items() if value is not None}


def _words(what: Pause) -> str:
    return " of ".join(f"the {name} {value}" for name, value in _named(what).items())


def _of(entry: Entry) -> str:
    if entry.pause is not None:
        return _words(entry.pause)
    return ":".join(filter(None, (entry.scope, entry.name or entry.group)))


def _is(entry: Entry) -> str:
    if entry.problem is not None:
        return entry.problem
    if entry.limit is not None:
        return limit_words(entry.limit)
    if entry.weight is not None:
        return f"{entry.weight:g}"
    return "paused" if entry.seconds is None else format_duration(entry.seconds)


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "rule": entry.kind,
        "scope": entry.scope,
        "name": entry.name or None,
        "group": entry.group or None,
        **({} if entry.limit is None else asdict(entry.limit)),
        **({} if entry.weight is None else {"weight": entry.weight}),
        **({} if entry.seconds is None else {"seconds": entry.seconds}),
        **({} if entry.problem is None else {"problem": entry.problem}),
        "note": entry.note,
        "by": entry.changed_by,
        "since": entry.changed_at,
    }
