"""Run the command ``sidestream``: global options, the list of commands, and the report of an error.

Each noun has its own module, which is registered below. Its top level imports only Typer and light modules; a command
imports drivers, settings and the user's code when it runs, so that ``sidestream --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from sidestream.cli import action, aging, bench, db, enqueue, failed, job, jobs, limit, queue, rule, worker
from sidestream.cli.options import GlobalOptions
from sidestream.cli.output import EXIT_FAULT, EXIT_INPUT, complain, exit_code
from sidestream.errors import ApplicationError, SidestreamError

app = typer.Typer(
    name="sidestream",
    help="Background jobs for Odoo and plain Python programs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("enqueue")(enqueue.enqueue)
app.command("jobs")(jobs.jobs)
app.add_typer(job.job, name="job")
app.add_typer(failed.failed, name="failed")
app.add_typer(queue.queue, name="queue")
app.add_typer(queue.group, name="group")
app.add_typer(action.action, name="action")
app.add_typer(limit.limit, name="limit")
app.add_typer(aging.aging, name="aging")
app.add_typer(rule.rule, name="rule")
app.add_typer(worker.worker, name="worker")
app.add_typer(db.db, name="db")
app.command("bench")(bench.bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sidestream {version('sidestream')}")
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    *,
    database_url: Annotated[
        str | None, typer.Option(help="URL of the PostgreSQL database (SIDESTREAM_DATABASE_URL).")
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="URL of Redis or Valkey; default: the embedded server (SIDESTREAM_REDIS_URL).")
    ] = None,
    application: Annotated[
        str | None, typer.Option("--app", help="Your application as module:attribute (SIDESTREAM_APP).")
    ] = None,
    odoo_config: Annotated[
        str | None, typer.Option(help="Odoo's configuration file, instead of --app (SIDESTREAM_ODOO_CONFIG).")
    ] = None,
    odoo_database: Annotated[
        str | None, typer.Option(help="Name of the Odoo database (SIDESTREAM_ODOO_DATABASE).")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Settings file in TOML (SIDESTREAM_CONFIG).")] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Background jobs for Odoo and plain Python programs. Global options come before the command's name."""
    del show_version  # its callback did the work
    context.obj = GlobalOptions(database_url, redis_url, application, config, odoo_config, odoo_database)


def main() -> None:
    """Run the command line; an error becomes one sentence on stderr and an exit code (see ``cli/output.py``)."""
    # Commands print their results; only the worker writes a log, and sets up its own handlers.
    logging.getLogger("sidestream").addHandler(logging.NullHandler())
    try:
        code: int | None = app(prog_name="sidestream", standalone_mode=False)
    except SidestreamError as error:
        if isinstance(error, ApplicationError):
            traceback.print_exception(error.__cause__)
        complain(str(error))
        code = exit_code(error)
    except Exception as error:  # noqa: BLE001  # one sentence; for a fault of our own, the traceback on demand
        code = EXIT_FAULT
        if hasattr(error, "format_message") and hasattr(error, "ctx"):  # Typer's, about the command line
            code = EXIT_INPUT
            if said := error.format_message():  # otherwise help was printed
                complain(f"{said.rstrip('.')}; see '{error.ctx.command_path if error.ctx else 'sidestream'} --help'.")
        elif not (isinstance(error, OSError) and _output_lost()):  # it said so
            if os.environ.get("SIDESTREAM_LOG_LEVEL") == "debug":
                traceback.print_exc()
            complain(
                f"This is a fault in Sidestream ({type(error).__name__}: {error}); "
                "set SIDESTREAM_LOG_LEVEL=debug to see where."
            )
    sys.exit(EXIT_FAULT if _output_lost() else code)


def _output_lost() -> bool:
    """Return whether results could not be written to stdout, and say so."""
    try:
        print(end="", flush=True)  # noqa: T201  # unlike sys.stdout.flush(), also without a stdout
    except OSError as error:
        complain(f"The output cannot be written ({error.strerror}); free space, or write it somewhere else.")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        return True
    return False
