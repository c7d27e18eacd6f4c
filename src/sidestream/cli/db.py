"""``sidestream db``: create, upgrade, adopt and check the tables."""

from __future__ import annotations

import typer

from sidestream.cli.options import AsJson, cursor_of, options_of
from sidestream.cli.output import answer, complain, print_json
from sidestream.errors import ForeignDatabase, SchemaMismatch

db = typer.Typer(no_args_is_help=True, help="Create, upgrade, adopt or check the tables in PostgreSQL.")


@db.command("init")
def db_init(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Create the tables unless they exist, and record the instance name if one is set."""
    from sidestream.store import schema

    settings = options_of(context).settings()
    with cursor_of(context, settings) as cursor:
        created = not schema.installed(cursor)
        found = schema.install(cursor, settings.instance)
    sentence = f"The tables {'are created' if created else 'exist already'}, with version {found.version}"
    if found.version < schema.SCHEMA_VERSION:
        sentence += " (upgrade them: sidestream db upgrade)"
    facts = {"database": found.uuid, "version": found.version, "created": created}
    answer(facts, f"{sentence}; this database is {found}.", as_json=as_json)


@db.command("upgrade")
def db_upgrade(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Upgrade the tables to this release's version."""
    from sidestream.store import schema

    with cursor_of(context) as cursor:
        before, after = schema.upgrade(cursor)
    sentence = f"The tables are upgraded from version {before} to version {after}."
    if before == after:
        sentence = f"The tables have version {after} already; there is nothing to do."
    answer({"from": before, "version": after}, sentence, as_json=as_json)


@db.command("adopt")
def db_adopt(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Let a copied, restored or moved database run its pending jobs here, under a new identity."""
    from sidestream.store import schema

    settings = options_of(context).settings()
    with cursor_of(context, settings) as cursor:
        database = schema.adopt(cursor, settings.instance)
    sentence = f"This database is now {database}; a running worker restarts within seconds."
    answer({"database": database.uuid}, sentence, as_json=as_json)


@db.command("check")
def db_check(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Check whether a worker with these settings can run the jobs of the database."""
    from sidestream.store import schema

    settings = options_of(context).settings()
    try:
        with cursor_of(context, settings) as cursor:
            found = schema.check(cursor, settings.instance)
    except (SchemaMismatch, ForeignDatabase) as error:
        if as_json:
            print_json({"ok": False, "problem": str(error)})
        else:
            complain(str(error))
        raise typer.Exit(1) from error
    copies = "workers with another instance name, or none, refuse it and its copies"
    if found.instance is None:
        copies = (
            "it shows no sign of a copy by template, dump or restore; only an instance name detects a physical copy "
            "(base backup, snapshot), and none is recorded: set SIDESTREAM_INSTANCE and run: sidestream db init"
        )
    answer(
        {"ok": True, "database": found.uuid, "version": found.version, "instance": found.instance},
        f"The tables have version {found.version} and every required column; this database is {found}; {copies}",
        as_json=as_json,
    )
