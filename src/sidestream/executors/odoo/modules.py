"""Whether the modules of an Odoo database may be loaded: nobody is installing, upgrading or removing some of them.

Odoo's registry goes on with an upgrade that stopped half way, and sets the states of modules back when it cannot be
loaded. Both would meddle with whoever upgrades. Nothing here imports odoo.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg

from sidestream.store.adapter import LOCK_NOT_AVAILABLE, connect, sqlstate, translate

CHANGING = "state IN ('to install', 'to upgrade', 'to remove')"
_CHANGING_MODULES = f"SELECT name FROM ir_module_module WHERE {CHANGING} ORDER BY name"  # noqa: S608
LOCK_PATIENCE = "2s"
"""How long an upgrade that changes the table of modules is waited for before it counts as one."""
NAMED = 5
"""How many of the modules are named."""


def what_hinders(dsn: str, application_name: str) -> str | None:
    """Return the sentence that says why no registry may be loaded now; None when it may be.

    Raises :class:`~sidestream.errors.StoreError`.
    """
    connection: psycopg.Connection[Any] = connect(dsn, application_name, autocommit=True)
    with contextlib.closing(connection):
        try:
            connection.execute(f"SET lock_timeout = '{LOCK_PATIENCE}'")
            found = connection.execute("SELECT to_regclass('ir_module_module'), to_regclass('ir_config_parameter')")
            if None in (found.fetchone() or (None,)):
                return None  # no database of Odoo's; loading it says so
            rows = connection.execute(_CHANGING_MODULES).fetchall()
            unfinished = connection.execute(
                "SELECT FROM ir_config_parameter WHERE key = 'base.partially_updated_database'"
            ).fetchone()
        except psycopg.Error as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise translate(error, "reading the states of the modules") from error
            return "Modules are being installed, upgraded or removed; the worker waits until that is over."
    if rows:
        names = ", ".join(name for (name,) in rows[:NAMED]) + (f" and {len(rows) - NAMED} more" * (len(rows) > NAMED))
        return f"Modules are being installed, upgraded or removed ({names}); the worker waits until that is over."
    if unfinished is not None:
        return (
            "An upgrade of modules has not been finished (base.partially_updated_database is set); the worker waits "
            "until Odoo was started once more, or upgraded with -u."
        )
    return None
