"""Sidestream: background jobs for Odoo on Redis. These are the public names; everything else may change.

They are imported when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidestream.client import Transaction
    from sidestream.errors import (
        GiveUp,
        InvalidJob,
        SidestreamError,
        SoftLimitExceeded,
        UnknownAction,
        UnsupportedOption,
    )
    from sidestream.executors.actions import Action, Actions
    from sidestream.executors.context import Context
    from sidestream.executors.model_action import ModelAction, declared
    from sidestream.job.building import build_job
    from sidestream.job.job import Job
    from sidestream.job.retry import RetryPolicy
    from sidestream.job.states import State
    from sidestream.settings import Settings
    from sidestream.store.control import cancel, retry, run_now
    from sidestream.store.retention import prune
    from sidestream.store.schema import adopt, identify, install
    from sidestream.wiring import Jobs, hasten

_HOMES = {
    "Action": "sidestream.executors.actions",
    "Actions": "sidestream.executors.actions",
    "Context": "sidestream.executors.context",
    "GiveUp": "sidestream.errors",
    "InvalidJob": "sidestream.errors",
    "Job": "sidestream.job.job",
    "Jobs": "sidestream.wiring",
    "ModelAction": "sidestream.executors.model_action",
    "RetryPolicy": "sidestream.job.retry",
    "Settings": "sidestream.settings",
    "SidestreamError": "sidestream.errors",
    "SoftLimitExceeded": "sidestream.errors",
    "State": "sidestream.job.states",
    "Transaction": "sidestream.client",
    "UnknownAction": "sidestream.errors",
    "UnsupportedOption": "sidestream.errors",
    "adopt": "sidestream.store.schema",
    "build_job": "sidestream.job.building",
    "cancel": "sidestream.store.control",
    "declared": "sidestream.executors.model_action",
    "hasten": "sidestream.wiring",
    "identify": "sidestream.store.schema",
    "install": "sidestream.store.schema",
    "prune": "sidestream.store.retention",
    "retry": "sidestream.store.control",
    "run_now": "sidestream.store.control",
}

__all__ = [
    "Action",
    "Actions",
    "Context",
    "GiveUp",
    "InvalidJob",
    "Job",
    "Jobs",
    "ModelAction",
    "RetryPolicy",
    "Settings",
    "SidestreamError",
    "SoftLimitExceeded",
    "State",
    "Transaction",
    "UnknownAction",
    "UnsupportedOption",
    "adopt",
    "build_job",
    "cancel",
    "declared",
    "hasten",
    "identify",
    "install",
    "prune",
    "retry",
    "run_now",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sidestream' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
