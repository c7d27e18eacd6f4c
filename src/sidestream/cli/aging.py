"""``sidestream aging``: show, set or reset the priority aging time."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli.options import NEGATIVE, AsJson, Note, seconds, who
from sidestream.cli.output import print_json, print_line
from sidestream.cli.rule import with_rules
from sidestream.job.durations import format_duration

aging = typer.Typer(no_args_is_help=True, help="Show or set the priority aging time.")


@aging.command("show")
def aging_show(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show the time after which a ready job of lower priority gets every second turn of its queue."""
    _tell(with_rules(context, lambda cursor, rules: rules.read(cursor)).aging, as_json=as_json)


@aging.command("set", context_settings=NEGATIVE)
def aging_set(
    context: typer.Context,
    time: Annotated[str, typer.Argument(metavar="TIME", help="A duration such as 5m, or a number of seconds.")],
    *,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set the priority aging time."""
    found = seconds("TIME", time)
    with_rules(context, lambda cursor, rules: rules.set_aging(cursor, found, by=who(), note=note))
    _tell(found, as_json=as_json)


@aging.command("reset")
def aging_reset(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Return to the default priority aging time."""
    from sidestream.job.rules import DEFAULT_AGING

    with_rules(context, lambda cursor, rules: rules.remove_aging(cursor))
    _tell(DEFAULT_AGING, as_json=as_json)


def _tell(found: float | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"aging": found})
    else:
        print_line(
            f"A job that has been ready for {format_duration(found or 0.0)} gets every second turn of its queue."
        )
