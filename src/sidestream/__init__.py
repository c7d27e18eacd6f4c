"""Run background jobs for Odoo and Python. Only the names in ``__all__`` are public.

Each name but the errors is imported at first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sidestream.errors import (
    ActionError,
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    BrokerUnsuitable,
    CommitRefused,
    DuplicateAction,
    ForeignDatabase,
    FormatUnknown,
    GiveUp,
    InvalidJob,
    InvalidName,
    LockLost,
    PayloadNotJson,
    PayloadTooLarge,
    SchemaMismatch,
    SettingsError,
    SidestreamError,
    Snooze,
    SoftLimitExceeded,
    StoreError,
    StoreUnavailable,
    UnknownAction,
    UnsupportedOption,
)

if TYPE_CHECKING:
    from sidestream.admin.jobs import sync_to_broker, why_waiting
    from sidestream.client import Transaction
    from sidestream.executors.declaration import bind_arguments
    from sidestream.executors.odoo.model_action import ModelAction, declared
    from sidestream.executors.python.actions import Action, Actions
    from sidestream.executors.python.context import Context
    from sidestream.job.building import build_job
    from sidestream.job.job import Job, Unique
    from sidestream.job.observer import JobFailure
    from sidestream.job.options import JOB_OPTIONS
    from sidestream.job.retry import GIVE_UP, RetryPolicy
    from sidestream.job.states import State, Status
    from sidestream.job.template import render_template
    from sidestream.redaction import redact_payload, redact_text
    from sidestream.settings import Settings
    from sidestream.store.control import cancel, retry, run_now
    from sidestream.store.locks import running_jobs
    from sidestream.store.retention import prune
    from sidestream.store.schema import adopt, identify, install, upgrade
    from sidestream.store.statuses import pending_statuses
    from sidestream.wiring.client import Jobs

_LAZY = {
    "admin.jobs": ("sync_to_broker", "why_waiting"),
    "client": ("Transaction",),
    "executors.declaration": ("bind_arguments",),
    "executors.odoo.model_action": ("ModelAction", "declared"),
    "executors.python.actions": ("Action", "Actions"),
    "executors.python.context": ("Context",),
    "job.building": ("build_job",),
    "job.job": ("Job", "Unique"),
    "job.observer": ("JobFailure",),
    "job.options": ("JOB_OPTIONS",),
    "job.retry": ("GIVE_UP", "RetryPolicy"),
    "job.states": ("State", "Status"),
    "job.template": ("render_template",),
    "redaction": ("redact_payload", "redact_text"),
    "settings": ("Settings",),
    "store.control": ("cancel", "retry", "run_now"),
    "store.locks": ("running_jobs",),
    "store.retention": ("prune",),
    "store.schema": ("adopt", "identify", "install", "upgrade"),
    "store.statuses": ("pending_statuses",),
    "wiring.client": ("Jobs",),
}
"""The names that are imported at first use, by their modules."""
_HOMES = {name: f"sidestream.{module}" for module, names in _LAZY.items() for name in names}

__all__ = [
    "GIVE_UP",
    "JOB_OPTIONS",
    "Action",
    "ActionError",
    "Actions",
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "BrokerUnsuitable",
    "CommitRefused",
    "Context",
    "DuplicateAction",
    "ForeignDatabase",
    "FormatUnknown",
    "GiveUp",
    "InvalidJob",
    "InvalidName",
    "Job",
    "JobFailure",
    "Jobs",
    "LockLost",
    "ModelAction",
    "PayloadNotJson",
    "PayloadTooLarge",
    "RetryPolicy",
    "SchemaMismatch",
    "Settings",
    "SettingsError",
    "SidestreamError",
    "Snooze",
    "SoftLimitExceeded",
    "State",
    "Status",
    "StoreError",
    "StoreUnavailable",
    "Transaction",
    "Unique",
    "UnknownAction",
    "UnsupportedOption",
    "adopt",
    "bind_arguments",
    "build_job",
    "cancel",
    "declared",
    "identify",
    "install",
    "pending_statuses",
    "prune",
    "redact_payload",
    "redact_text",
    "render_template",
    "retry",
    "run_now",
    "running_jobs",
    "sync_to_broker",
    "upgrade",
    "why_waiting",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sidestream' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
