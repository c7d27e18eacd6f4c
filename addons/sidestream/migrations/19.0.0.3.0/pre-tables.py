"""Upgrade the engine's tables before Odoo looks at the models over them."""

from psycopg2.errors import LockNotAvailable

from sidestream import install

from odoo.exceptions import UserError


def migrate(cr, version):
    try:
        install(cr._obj)
    except LockNotAvailable as error:  # a job that runs holds its row to its end
        raise UserError(
            "Background jobs are running, and their tables cannot be changed under them. Stop the worker (what runs is "
            "finished first), upgrade Sidestream again, then start the worker."
        ) from error
