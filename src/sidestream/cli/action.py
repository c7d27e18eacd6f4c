"""``sidestream action``: list, pause or resume actions."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli import rule
from sidestream.cli.options import AsJson, Note
from sidestream.cli.statistics import list_statistics
from sidestream.job.rules import Pause

action = typer.Typer(no_args_is_help=True, help="List, pause or resume actions.")

Name = Annotated[str, typer.Argument(metavar="ACTION", help="Name of the action.")]
Group = Annotated[str | None, typer.Option(help="Only jobs of this group.")]


@action.command("list")
def action_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Count the jobs of each action by status, with their age and latencies."""
    list_statistics(context, "action", as_json=as_json)


@action.command("pause")
def action_pause(
    context: typer.Context, name: Name, *, group: Group = None, note: Note = None, as_json: AsJson = False
) -> None:
    """Let no more jobs of the action start; running jobs continue."""
    rule.pause(context, Pause(action=name, group=group), note, as_json=as_json)


@action.command("resume")
def action_resume(context: typer.Context, name: Name, *, group: Group = None, as_json: AsJson = False) -> None:
    """Let the jobs of a paused action start again."""
    rule.resume(context, Pause(action=name, group=group), as_json=as_json)
