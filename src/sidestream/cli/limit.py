"""``sidestream limit``: list, set or remove a limit on how many jobs run or start."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from sidestream.cli.options import AsJson, Note, options_of, who
from sidestream.cli.output import answer, fail
from sidestream.cli.rule import limit_facts, limit_words, list_rules
from sidestream.errors import SettingsError
from sidestream.job.durations import UNITS, parse_duration
from sidestream.job.rules import Limit, Scope

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
    concurrency: Annotated[int | None, typer.Option(help="Maximum number of running jobs; 0 for none.")] = None,
    rate: Annotated[str | None, typer.Option(help="Starts per second, or 30/m, 5/h, 1/d, 100/15m; 0 for none.")] = None,
    burst: Annotated[int, typer.Option(help="Starts that are allowed at once after a quiet time.")] = 1,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set or replace a limit."""
    from sidestream.admin import rules

    kind, name = _scope(scope)
    wanted = Limit(concurrency, None if rate is None else _rate(rate), burst)
    rules.set_limit(options_of(context).settings(), kind, name, wanted, by=who(), note=note)
    facts = {"scope": kind, "name": name, **limit_facts(wanted)}
    answer(facts, f"Limited: {scope} to {limit_words(wanted)}.", as_json=as_json)


@limit.command("remove")
def limit_remove(context: typer.Context, scope: Limited, *, as_json: AsJson = False) -> None:
    """Remove a limit."""
    from sidestream.admin import rules

    kind, name = _scope(scope)
    if not rules.remove_limit(options_of(context).settings(), kind, name):
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
        found = math.nan
    if not math.isfinite(found):
        raise SettingsError(
            f"--rate {text!r:.40} is not a rate; expected starts per second, or 30/m, 5/h, 1/d or 100/15m."
        )
    return found
