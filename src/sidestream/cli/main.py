"""The entry point of ``sidestream``: global options, the list of commands, and what an error looks like.

A command lives in a module of its own and is registered below. Such a module imports nothing but Typer and this
folder at its top; whatever needs a database, Redis or the user's code is imported when the command runs, so that
``sidestream --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from sidestream.cli import bench, enqueue, failed, jobs, queues, quiet, rules, why, worker, workers
from sidestream.cli.options import GlobalOptions
from sidestream.cli.output import EXIT_FAULT, complain, exit_code
from sidestream.errors import ApplicationError, SidestreamError

app = typer.Typer(
    name="sidestream",
    help="Background jobs for Odoo on Redis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("worker")(worker.worker)
app.command("why")(why.why)
app.add_typer(failed.failed, name="failed")
app.command("quiet")(quiet.quiet)
app.command("workers")(workers.workers)
app.command("pause")(rules.pause)
app.command("resume")(rules.resume)
app.add_typer(rules.limit, name="limit")
app.add_typer(rules.weight, name="weight")
app.command("aging", context_settings=rules.NEGATIVE)(rules.aging)
app.command("rules")(rules.all_rules)
app.command("priority", context_settings=rules.NEGATIVE)(jobs.priority)
app.command("init-db")(queues.init_db)
app.command("adopt")(queues.adopt)
app.command("enqueue")(enqueue.enqueue)
app.command("jobs")(jobs.jobs)
app.command("job")(jobs.job)
app.command("queues")(queues.queues)
app.command("bench")(bench.bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sidestream {version('sidestream')}")
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    *,
    database_url: Annotated[str | None, typer.Option(help="PostgreSQL (SIDESTREAM_DATABASE_URL).")] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="Redis or Valkey; the embedded one if not given (SIDESTREAM_REDIS_URL).")
    ] = None,
    application: Annotated[
        str | None, typer.Option("--app", help="Your actions as module:attribute (SIDESTREAM_APP).")
    ] = None,
    odoo_config: Annotated[
        str | None, typer.Option(help="Odoo's configuration file, instead of --app (SIDESTREAM_ODOO_CONFIG).")
    ] = None,
    odoo_database: Annotated[str | None, typer.Option(help="The Odoo database (SIDESTREAM_ODOO_DATABASE).")] = None,
    config: Annotated[str | None, typer.Option(help="A settings file in TOML (SIDESTREAM_CONFIG).")] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Background jobs for Odoo on Redis. Global options come before the command's name."""
    del show_version  # its callback has done it
    context.obj = GlobalOptions(
        database_url=database_url,
        redis_url=redis_url,
        app=application,
        config=config,
        odoo_config=odoo_config,
        odoo_database=odoo_database,
    )


def main() -> None:
    """Run the command line; an error becomes one sentence on stderr and an exit code (see ``cli/output.py``)."""
    # Commands speak for themselves; only the worker, which sets up handlers of its own, writes a log.
    logging.getLogger("sidestream").addHandler(logging.NullHandler())
    try:
        app()
    except SidestreamError as error:
        if isinstance(error, ApplicationError):
            traceback.print_exception(error.__cause__)
        complain(str(error))
        sys.exit(exit_code(error))
    except Exception as error:  # noqa: BLE001  # a fault of ours: still one sentence, the rest on demand
        if os.environ.get("SIDESTREAM_LOG_LEVEL") == "debug":
            traceback.print_exc()
        complain(
            f"This is a fault in Sidestream ({type(error).__name__}: {error}); "
            "set SIDESTREAM_LOG_LEVEL=debug to see where."
        )
        sys.exit(EXIT_FAULT)
