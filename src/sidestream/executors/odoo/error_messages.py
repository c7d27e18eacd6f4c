"""Give exceptions the message that Odoo's own error dialog would show.

Odoo translates such exceptions where it answers a request (``odoo/service/model.py``, the web client), which a job does
not reach. This module does not import odoo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2

from sidestream.executors.protocol import set_message


def humanize_error(error: BaseException, redirect: type[BaseException], env: Callable[[], Any]) -> None:
    """Set a message for people on ``error`` if its own text is not one.

    Args:
        error: The exception that an action raised.
        redirect: Odoo's RedirectWarning class; its text is its first argument.
        env: Rolls back and returns an environment in the language of the user who requested the job.
    """
    if isinstance(error, redirect):
        set_message(error, str(error.args[0]))
    elif isinstance(error, psycopg2.IntegrityError):
        set_message(error, _constraint_message(error, env()))


def _constraint_message(error: psycopg2.IntegrityError, env: Any) -> str:
    table = error.diag.table_name
    models = [name for name, model in env.registry.items() if table and model._table == table]
    model = env[models[0] if models else "base"]
    message: str = env._("The operation cannot be completed: %s", model._sql_error_to_message(error))
    return message
