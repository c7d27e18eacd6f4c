"""``sidestream limit``: list, set or remove a limit on how many jobs run or start."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sidestream.cli.options import AsJson, Note, cursor_of, number, who
from sidestream.cli.output import answer, fail
from sidestream.cli.rule import limit_words, list_rules
from sidestream.errors import SettingsError
from sidestream.job.durations import UNITS, parse_duration
from sidestream.job.rules import MAX_COUNT, MAX_RATE, MIN_RATE, Limit, Scope

limit = typer.Typer(no_args_is_help=True, help="Limit how many jobs run at once, and how many start in a time.")

Limited = Annotated[str, typer.Argument(metavar="SCOPE[:NAME]", help="global, queue:NAME, action:NAME or key:RULE.")]


@limit.command("list")
def limit_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the limits."""
    list_rules(context, ("limit",), as_json=as_json)


@limit.command("set")
def limit_set(
    context: typer.Context,
    scope: Limited,
    *,
    concurrency: Annotated[int | None, number(0, MAX_COUNT, "Maximum number of running jobs; 0 for none.")] = None,
    rate: Annotated[str | None, typer.Option(help="Starts per second, or 30/m, 5/h, 1/d, 100/15m; 0 for none.")] = None,
    burst: Annotated[int, number(1, MAX_COUNT, "Starts that are allowed at once after a quiet time.")] = 1,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set or replace a limit."""
    from sidestream.store import rules

    kind, name = _scope(scope)
    wanted = Limit(concurrency, None if rate is None else _rate(rate), burst)
    with cursor_of(context) as cursor:
        rules.set_limit(cursor, kind, name, wanted, by=who(), note=note)
    facts = {"scope": kind, "name": name, **asdict(wanted)}
    answer(facts, f"Limited: {scope} to {limit_words(wanted)}.", as_json=as_json)


@limit.command("remove")
def limit_remove(context: typer.Context, scope: Limited, *, as_json: AsJson = False) -> None:
    """Remove a limit."""
    from sidestream.store import rules

    kind, name = _scope(scope)
    with cursor_of(context) as cursor:
        removed = rules.remove_limit(cursor, kind, name)
    if not removed:
        fail(f"There is no limit of {scope}; list the limits with 'sidestream limit list'.")
    answer({"scope": kind, "name": name, "removed": True}, f"No longer limited: {scope}.", as_json=as_json)


def _scope(text: str) -> tuple[str, str]:
    kind, colon, name = text.partition(":")
    if kind not in set(Scope) or (kind == Scope.GLOBAL) == bool(colon):
        raise SettingsError(
            f"{text!r:.80} is not a scope of a limit; expected global, queue:NAME, action:NAME or key:RULE."
        )
    return kind, name


def _rate(text: str) -> float:
    """Return the starts per second that ``STARTS[/DURATION]`` means, where a unit alone is one of it."""
    starts, slash, per = text.partition("/")
    try:
        found = float(starts) / (parse_duration(f"1{per}" if per in UNITS else per) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        found = -1.0
    if found and not MIN_RATE <= found <= MAX_RATE:
        raise SettingsError(
            f"--rate {text!r:.40} is not a rate; expected 0 (none), or starts per second from {MIN_RATE:g} to "
            f"{MAX_RATE:.0f}, also as 30/m, 5/h, 1/d or 100/15m."
        )
    return found
