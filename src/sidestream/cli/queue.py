"""``sidestream queue``: list, pause, resume or weight queues."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli import rule
from sidestream.cli.options import NEGATIVE, AsJson, Note
from sidestream.cli.statistics import list_statistics

queue = typer.Typer(no_args_is_help=True, help="List, pause, resume or weight queues.")

Name = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue.")]


@queue.command("list")
def queue_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Count the jobs of each queue by status, with their age and latencies."""
    list_statistics(context, "queue", as_json=as_json)


@queue.command("pause")
def queue_pause(context: typer.Context, name: Name, *, note: Note = None, as_json: AsJson = False) -> None:
    """Let no more jobs of the queue start; running jobs continue."""
    from sidestream.job.rules import Pause

    rule.pause(context, Pause(queue=name), note, as_json=as_json)


@queue.command("resume")
def queue_resume(context: typer.Context, name: Name, *, as_json: AsJson = False) -> None:
    """Let the jobs of a paused queue start again."""
    from sidestream.job.rules import Pause

    rule.resume(context, Pause(queue=name), as_json=as_json)


@queue.command("weight", context_settings=NEGATIVE)
def queue_weight(
    context: typer.Context,
    name: Name,
    weight: Annotated[
        float | None, typer.Argument(metavar="[WEIGHT]", help="0.01 to 1000, default 1; without it, show the weight.")
    ] = None,
    *,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Set the scheduling weight of a queue (default 1), or show it."""
    rule.weigh(context, "queue", name, weight, note, as_json=as_json)
