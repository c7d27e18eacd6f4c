"""``sidestream group``: list, pause, resume or weight groups."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli import rule
from sidestream.cli.options import NEGATIVE, AsJson, Note
from sidestream.cli.statistics import list_statistics

group = typer.Typer(no_args_is_help=True, help="List, pause, resume or weight groups.")

Name = Annotated[str, typer.Argument(metavar="GROUP", help="Name of the group, for example company:2.")]


@group.command("list")
def group_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Count the jobs of each group by status, with their age and latencies."""
    list_statistics(context, "group", as_json=as_json)


@group.command("pause")
def group_pause(context: typer.Context, name: Name, *, note: Note = None, as_json: AsJson = False) -> None:
    """Let no more jobs of the group start; running jobs continue."""
    from sidestream.job.rules import Pause

    rule.pause(context, Pause(group=name), note, as_json=as_json)


@group.command("resume")
def group_resume(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Let the jobs of a paused group start again."""
    from sidestream.job.rules import Pause

    rule.resume(context, Pause(group=name), as_json=as_json)


@group.command("weight", context_settings=NEGATIVE)
def group_weight(
    context: typer.Context,
    name: Name,
    weight: Annotated[
        float | None, typer.Argument(metavar="[WEIGHT]", help="0.01 to 1000, default 1; without it, show the weight.")
    ] = None,
    *,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set the scheduling weight of a group (default 1), or show it."""
    rule.weigh(context, "group", name, weight, note, as_json=as_json)
