"""Carry out cancel requests for running jobs.

A cancel of a locked row is a request that every worker reads. The worker that runs the job kills it; the first worker
that finds the row unlocked cancels it. A job that commits first stays done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sidestream.maintenance.store_connection import Cursor, StoreConnection
from sidestream.store import control

log = logging.getLogger(__name__)


class CancellationTask:
    """Reads cancel requests."""

    name = "cancellations"
    every = 1.0

    def __init__(self, store: StoreConnection, *, stop_running: Callable[[int], bool]) -> None:
        """``stop_running`` kills the process that runs a row here; it returns False when none does."""
        self._store = store
        self._stop_running = stop_running

    def step(self) -> bool:
        """Go once through the oldest requests; there is no more to do at once, the killed need a moment."""
        with self._store.cursor("reading cancel requests") as cursor:
            for request in control.pending(cursor):
                self._carry_out(cursor, request)
        return False

    def _carry_out(self, cursor: Cursor, request: control.Request) -> None:
        written = control.carry_out(cursor, request)
        if written is None:  # a person retried the job, so the request no longer applies
            return
        if written.locked:
            if self._stop_running(request.job_id):
                log.info(
                    "Job %s is stopped because it was cancelled.",
                    request.job_id,
                    extra={"action": "job_stopped", "job": request.job_id},
                )
        elif control.handled(cursor, request.id):
            log.info(
                "The request to cancel job %s is handled: it is %s.",
                request.job_id,
                written.state.value if written.state is not None else "gone",
                extra={"action": "cancel_handled", "job": request.job_id},
            )
