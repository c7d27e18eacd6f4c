"""Sidestream: background jobs for Odoo on Redis. These are the public names; everything else may change.

They are imported when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidestream.client import Transaction
    from sidestream.errors import SidestreamError
    from sidestream.executors.actions import Action, Actions
    from sidestream.executors.context import Context
    from sidestream.job.job import Job
    from sidestream.job.retry import RetryPolicy
    from sidestream.job.states import State
    from sidestream.settings import Settings
    from sidestream.store.schema import install
    from sidestream.wiring import Jobs

__all__ = [
    "Action",
    "Actions",
    "Context",
    "Job",
    "Jobs",
    "RetryPolicy",
    "Settings",
    "SidestreamError",
    "State",
    "Transaction",
    "install",
]

_HOMES = {
    "Action": "sidestream.executors.actions",
    "Actions": "sidestream.executors.actions",
    "Context": "sidestream.executors.context",
    "Job": "sidestream.job.job",
    "Jobs": "sidestream.wiring",
    "RetryPolicy": "sidestream.job.retry",
    "Settings": "sidestream.settings",
    "SidestreamError": "sidestream.errors",
    "State": "sidestream.job.states",
    "Transaction": "sidestream.client",
    "install": "sidestream.store.schema",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sidestream' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
