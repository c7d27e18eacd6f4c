"""What Odoo's own dialog would say of an exception whose text is not for people.

Odoo puts them into words where it answers a request (``odoo/service/model.py``, the web client); a job has neither.
Nothing here imports odoo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2

from sidestream.executors.protocol import set_message


def humanize_error(error: BaseException, redirect: type[BaseException], env: Callable[[], Any]) -> None:
    """Give ``error`` a message for people, where it needs one.

    Args:
        error: What an action raised.
        redirect: Odoo's warning that leads to another page; its text is the first of its arguments.
        env: Rolls back and returns an environment in the language of whoever asked for the job.
    """
    if isinstance(error, redirect):
        set_message(error, str(error.args[0]))
    elif isinstance(error, psycopg2.IntegrityError):
        set_message(error, _broken_rule(error, env()))


def _broken_rule(error: psycopg2.IntegrityError, env: Any) -> str:
    table = error.diag.table_name
    named = [name for name, model in env.registry.items() if table and model._table == table]
    model = env[named[0] if named else "base"]
    said: str = env._("The operation cannot be completed: %s", model._sql_error_to_message(error))
    return said
