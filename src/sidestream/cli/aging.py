"""``sidestream aging``: show, set or reset the priority aging time."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli.options import NEGATIVE, AsJson, Note, cursor_of, seconds, who
from sidestream.cli.output import answer
from sidestream.job.durations import format_duration
from sidestream.job.rules import DEFAULT_AGING, MAX_AGING

aging = typer.Typer(no_args_is_help=True, help="Show or set the priority aging time.")


@aging.command("show")
def aging_show(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show the time after which a ready job of lower priority gets every second turn of its queue."""
    from sidestream.store import rules

    with cursor_of(context) as cursor:
        _tell(rules.read(cursor).aging, as_json=as_json)


@aging.command("set", context_settings=NEGATIVE)
def aging_set(
    context: typer.Context,
    time: Annotated[str, typer.Argument(metavar="TIME", help="A duration such as 5m, or a number of seconds.")],
    *,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set the priority aging time."""
    from sidestream.store import rules

    found = seconds("TIME", time, MAX_AGING)
    with cursor_of(context) as cursor:
        rules.set_aging(cursor, found, by=who(), note=note)
    _tell(found, as_json=as_json)


@aging.command("reset")
def aging_reset(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Return to the default priority aging time."""
    from sidestream.store import rules

    with cursor_of(context) as cursor:
        rules.remove_aging(cursor)
    _tell(DEFAULT_AGING, as_json=as_json)


def _tell(found: float, *, as_json: bool) -> None:
    sentence = f"A job that has been ready for {format_duration(found)} gets every second turn of its queue."
    answer({"aging": found}, sentence, as_json=as_json)
