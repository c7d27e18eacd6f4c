"""Upgrade the engine's tables before Odoo looks at the models over them."""

from sidestream import install


def migrate(cr, version):
    install(cr._obj)
