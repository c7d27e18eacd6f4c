"""``sidestream queues`` and ``sidestream init-db``: the backlogs, and the tables that they are in."""

from __future__ import annotations

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import print_json, print_line, print_table


def queues(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Count the jobs of each queue that are not done, by what they wait for."""
    from sidestream.store import queries
    from sidestream.wiring import store_cursor

    with store_cursor(options_of(context).settings()) as cursor:
        found = queries.counts(cursor)
    if as_json:
        print_json({"queues": [counts._asdict() for counts in found]})
    elif not found:
        print_line("No queue has open, dead or cancelled jobs.")
    else:
        print_table(("QUEUE", "DUE", "SCHEDULED", "RETRYING", "DEAD", "CANCELLED"), found)


def init_db(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Create Sidestream's tables in the database; safe to repeat."""
    from sidestream.store import schema
    from sidestream.wiring import store_cursor

    with store_cursor(options_of(context).settings()) as cursor:
        database = schema.install(cursor)
    if as_json:
        print_json({"database": database.uuid, "version": schema.SCHEMA_VERSION})
    else:
        print_line(f"The tables are there, version {schema.SCHEMA_VERSION}; this database is {database.uuid}.")


def adopt(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Let a copied, restored or moved database run its open jobs here, under an identity of its own."""
    from sidestream.store import schema
    from sidestream.wiring import store_cursor

    with store_cursor(options_of(context).settings()) as cursor:
        database = schema.adopt(cursor)
    if as_json:
        print_json({"database": database.uuid})
    else:
        print_line(f"This database is now {database.uuid}; start its workers again.")
