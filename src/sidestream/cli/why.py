"""``sidestream why``: one sentence that says why a job waits, or how it ended."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli import direct
from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import fail, print_json, print_line


def why(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id; of a direct job its uuid.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Say in one sentence why a job waits."""
    from sidestream.admin.jobs import why_waiting

    named, settings = direct.job_id(job_id), options_of(context).settings()
    sentence = why_waiting(settings, named) if isinstance(named, int) else direct.why(settings, named)
    if sentence is None:
        fail(f"There is no job {job_id}; list them with 'sidestream jobs'.")
    if as_json:
        print_json({"id": named if isinstance(named, int) else str(named), "why": sentence})
    else:
        print_line(sentence)
