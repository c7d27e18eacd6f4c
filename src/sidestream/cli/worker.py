"""``sidestream worker``: run jobs until told to stop."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from sidestream.cli.options import options_of


def worker(
    context: typer.Context,
    queues: str = typer.Option(None, help="Queues to serve, comma-separated (SIDESTREAM_QUEUES)."),
    children: int = typer.Option(None, help="Child processes (SIDESTREAM_CHILDREN)."),
    quiet_jobs: bool = typer.Option(
        False, "--quiet-jobs", help="Log no line for how a job ended (SIDESTREAM_QUIET_JOBS)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Log lines as JSON (SIDESTREAM_LOG_FORMAT=json)."),
) -> None:
    """Run jobs until SIGTERM or Ctrl-C: running ones end first; a second signal hands them back."""
    from sidestream.logs import set_up_logging
    from sidestream.wiring.worker import Worker

    settings = options_of(context).settings(
        queues=queues,
        children=children,
        log_format="json" if as_json else None,
        quiet_jobs=True if quiet_jobs else None,
    )
    set_up_logging(settings.log_level, settings.log_format, quiet_jobs=settings.quiet_jobs)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # where the user's own module most likely is; the zygote is told the same
    while Worker(settings).run():
        pass  # its database was adopted: another worker begins where this one ended
