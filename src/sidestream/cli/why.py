"""``sidestream why``: one sentence that says why a job waits, or how it ended."""

from __future__ import annotations

from typing import Annotated

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import fail, print_json, print_line


def why(
    context: typer.Context,
    job_id: Annotated[int, typer.Argument(metavar="ID", help="The job's id.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Say in one sentence why a job waits."""
    from sidestream.cli.jobs import check_id
    from sidestream.wiring import why_waiting

    check_id(job_id)
    sentence = why_waiting(options_of(context).settings(), job_id)
    if sentence is None:
        fail(f"There is no job {job_id}; list them with 'sidestream jobs'.")
    if as_json:
        print_json({"id": job_id, "why": sentence})
    else:
        print_line(sentence)
