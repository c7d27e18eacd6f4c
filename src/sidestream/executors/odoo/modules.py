"""Check that no module is being changed, so that the registry may be loaded.

Loading a registry continues an interrupted upgrade, and a failed load resets the states of modules. Both would
interfere with the process that upgrades. This module does not import odoo.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg

from sidestream.store.adapter import LOCK_NOT_AVAILABLE, connect, sqlstate, translate

CHANGING = "state IN ('to install', 'to upgrade', 'to remove')"
_CHANGING_MODULES = f"SELECT name FROM ir_module_module WHERE {CHANGING} ORDER BY name"  # noqa: S608
LOCK_TIMEOUT = "2s"
"""How long to wait for a lock on the table of modules; after that, an upgrade is assumed."""
MOST_NAMES = 5
"""Most module names in the message."""


def loading_obstacle(dsn: str, application_name: str) -> str | None:
    """Return a sentence that says why the registry may not be loaded now; None when it may be.

    Raises :class:`~sidestream.errors.StoreError`.
    """
    connection: psycopg.Connection[Any] = connect(dsn, application_name, autocommit=True)
    with contextlib.closing(connection):
        try:
            connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
            found = connection.execute("SELECT to_regclass('ir_module_module'), to_regclass('ir_config_parameter')")
            if None in (found.fetchone() or (None,)):
                return None  # not an Odoo database; loading it reports that
            rows = connection.execute(_CHANGING_MODULES).fetchall()
            unfinished = connection.execute(
                "SELECT FROM ir_config_parameter WHERE key = 'base.partially_updated_database'"
            ).fetchone()
        except psycopg.Error as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise translate(error, "reading the states of the modules") from error
            return "Modules are being installed, upgraded or removed; the worker waits until this is over."
    if rows:
        names = ", ".join(name for (name,) in rows[:MOST_NAMES]) + (
            f" and {len(rows) - MOST_NAMES} more" * (len(rows) > MOST_NAMES)
        )
        return f"Modules are being installed, upgraded or removed ({names}); the worker waits until this is over."
    if unfinished is not None:
        return (
            "An upgrade of modules is not finished (base.partially_updated_database is set); the worker waits until "
            "it is. Start Odoo once, or run the upgrade again with -u."
        )
    return None
