"""``sidestream queue`` and ``sidestream group``: list, pause, resume or weight queues or groups."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sidestream.cli import rule
from sidestream.cli.options import NEGATIVE, AsJson, Note, cursor_of, number, who
from sidestream.cli.output import answer
from sidestream.cli.statistics import list_statistics
from sidestream.job.rules import DEFAULT_WEIGHT, MAX_WEIGHT, MIN_WEIGHT, Pause

_WEIGHT = number(MIN_WEIGHT, MAX_WEIGHT, "0.01 to 1000, default 1; without it, show the weight.", "[WEIGHT]")
Weight = Annotated[float | None, _WEIGHT]


def _commands(kind: Literal["queue", "group"], name_help: str) -> typer.Typer:
    """Return the commands of queues or groups."""
    commands = typer.Typer(no_args_is_help=True, help=f"List, pause, resume or weight {kind}s.")
    of_name = typer.Argument(metavar=kind.upper(), help=name_help)

    @commands.command("list", help=f"Count the jobs of each {kind} by status, with their age and latencies.")
    def list_all(context: typer.Context, *, as_json: AsJson = False) -> None:
        list_statistics(context, kind, as_json=as_json)

    @commands.command("pause", help=f"Let no more jobs of the {kind} start; running jobs continue.")
    def pause(context: typer.Context, name: str = of_name, *, note: Note = None, as_json: AsJson = False) -> None:
        rule.pause(context, Pause(**{kind: name}), note, as_json=as_json)

    @commands.command("resume", help=f"Let the jobs of a paused {kind} start again.")
    def resume(context: typer.Context, name: str = of_name, *, as_json: AsJson = False) -> None:
        rule.resume(context, Pause(**{kind: name}), as_json=as_json)

    @commands.command(
        "weight", context_settings=NEGATIVE, help=f"Set the scheduling weight of a {kind} (default 1), or show it."
    )
    def weight(
        context: typer.Context,
        name: str = of_name,
        weight: Weight = None,
        *,
        note: Note = None,
        as_json: AsJson = False,
    ) -> None:
        from sidestream.store import rules

        with cursor_of(context) as cursor:
            if weight is None:
                found = rules.read(cursor)
                weights = found.queue_weights if kind == "queue" else found.group_weights
                weight = weights.get(name, DEFAULT_WEIGHT)
            elif weight == DEFAULT_WEIGHT:
                rules.remove_weight(cursor, kind, name)
            else:
                rules.set_weight(cursor, kind, name, weight, by=who(), note=note)
        facts = {"kind": kind, "name": name, "weight": weight}
        answer(facts, f"The {kind} {name} has weight {weight:g}.", as_json=as_json)

    return commands


queue = _commands("queue", "Name of the queue.")
group = _commands("group", "Name of the group, for example company:2.")
