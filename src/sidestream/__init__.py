"""Background jobs for Odoo on Redis. The names in ``__all__`` are public; everything else may change.

Each name is imported at first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidestream.admin.jobs import sync_to_broker, why_waiting
    from sidestream.client import Transaction
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
    from sidestream.store.schema import adopt, identify, install
    from sidestream.store.statuses import pending_statuses
    from sidestream.wiring.client import Jobs

_HOMES = {
    "Action": "sidestream.executors.python.actions",
    "ActionError": "sidestream.errors",
    "Actions": "sidestream.executors.python.actions",
    "BrokerError": "sidestream.errors",
    "BrokerFull": "sidestream.errors",
    "BrokerUnavailable": "sidestream.errors",
    "BrokerUnsuitable": "sidestream.errors",
    "CommitRefused": "sidestream.errors",
    "Context": "sidestream.executors.python.context",
    "DuplicateAction": "sidestream.errors",
    "ForeignDatabase": "sidestream.errors",
    "FormatUnknown": "sidestream.errors",
    "GIVE_UP": "sidestream.job.retry",
    "GiveUp": "sidestream.errors",
    "InvalidJob": "sidestream.errors",
    "InvalidName": "sidestream.errors",
    "JOB_OPTIONS": "sidestream.job.options",
    "Job": "sidestream.job.job",
    "JobFailure": "sidestream.job.observer",
    "Jobs": "sidestream.wiring.client",
    "LockLost": "sidestream.errors",
    "ModelAction": "sidestream.executors.odoo.model_action",
    "PayloadNotJson": "sidestream.errors",
    "PayloadTooLarge": "sidestream.errors",
    "RetryPolicy": "sidestream.job.retry",
    "SchemaMismatch": "sidestream.errors",
    "Settings": "sidestream.settings",
    "SettingsError": "sidestream.errors",
    "SidestreamError": "sidestream.errors",
    "Snooze": "sidestream.errors",
    "SoftLimitExceeded": "sidestream.errors",
    "State": "sidestream.job.states",
    "Status": "sidestream.job.states",
    "StoreError": "sidestream.errors",
    "StoreUnavailable": "sidestream.errors",
    "Transaction": "sidestream.client",
    "Unique": "sidestream.job.job",
    "UnknownAction": "sidestream.errors",
    "UnsupportedOption": "sidestream.errors",
    "adopt": "sidestream.store.schema",
    "build_job": "sidestream.job.building",
    "cancel": "sidestream.store.control",
    "declared": "sidestream.executors.odoo.model_action",
    "sync_to_broker": "sidestream.admin.jobs",
    "identify": "sidestream.store.schema",
    "install": "sidestream.store.schema",
    "prune": "sidestream.store.retention",
    "render_template": "sidestream.job.template",
    "retry": "sidestream.store.control",
    "run_now": "sidestream.store.control",
    "redact_payload": "sidestream.redaction",
    "redact_text": "sidestream.redaction",
    "running_jobs": "sidestream.store.locks",
    "pending_statuses": "sidestream.store.statuses",
    "why_waiting": "sidestream.admin.jobs",
}

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
