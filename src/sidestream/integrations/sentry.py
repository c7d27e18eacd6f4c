"""Report failed jobs to Sentry. Requires ``sidestream[sentry]``; see docs/howto/sentry.md.

In the module that the worker loads::

    sentry_sdk.init(dsn=..., integrations=[SidestreamIntegration()])
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.utils import event_from_exception

from sidestream.job.observer import JobFailure, JobObserver, JobRun, observers
from sidestream.logs import JOBS

FLUSH_SECONDS = 2.0
"""Seconds that an ending process waits until its events are sent."""


class SidestreamIntegration(Integration):
    """Sends an event for each failed job, with its exception if there is one.

    Events that are captured while a job runs have the tags ``job.id``, ``job.action``, ``job.queue`` and
    ``job.attempt``.
    """

    identifier = "sidestream"

    def __init__(self, *, every_attempt: bool = False) -> None:
        """With ``every_attempt``, also send an event for each failed attempt that is retried."""
        self.every_attempt = every_attempt

    @staticmethod
    def setup_once() -> None:
        """Observe the jobs of this process and of its forked children."""
        ignore_logger(JOBS)  # the same failures are reported here
        observers.append(_Observer())


class _Observer(JobObserver):
    def attempt(self, run: JobRun) -> AbstractContextManager[object]:
        return _scope(asdict(run))

    def attempt_failed(self, run: JobRun, error: BaseException, *, final: bool) -> None:
        del run
        client = sentry_sdk.get_client()
        integration = client.get_integration(SidestreamIntegration)
        if integration is None or not (final or integration.every_attempt):
            return
        mechanism = {"type": SidestreamIntegration.identifier, "handled": False}
        event, hint = event_from_exception(error, client_options=client.options, mechanism=mechanism)
        sentry_sdk.capture_event(event, hint=hint)

    def job_failed(self, failure: JobFailure) -> None:
        if failure.traceback or sentry_sdk.get_client().get_integration(SidestreamIntegration) is None:
            return  # the process of the last attempt has sent the exception
        run = JobRun(failure.id, failure.action, failure.queue, failure.attempts)
        with _scope(asdict(run)):
            sentry_sdk.capture_message(f"Job {failure.action} has failed: {failure.error}", level="error")

    def close(self) -> None:
        sentry_sdk.flush(timeout=FLUSH_SECONDS)


@contextmanager
def _scope(facts: dict[str, Any]) -> Iterator[None]:
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_transaction_name(facts["action"], source="task")
        scope.set_context("job", facts)
        for name, value in facts.items():
            scope.set_tag(f"job.{name}", str(value))
        yield
