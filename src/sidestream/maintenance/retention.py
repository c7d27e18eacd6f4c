"""Delete jobs whose retention has passed."""

from __future__ import annotations

import logging

from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import retention

log = logging.getLogger(__name__)

PRUNE_LOT = 1000
"""Most jobs that one step removes, with their attempts: some 20 ms of PostgreSQL's time."""


class RetentionTask:
    """Delete ended jobs in small batches, so that no statement holds many locks or writes much WAL.

    Settings: ``done_retention = "30d"``, ``failed_retention = "none"``.
    """

    name = "retention"
    every = 60.0

    def __init__(self, store: StoreConnection, *, done_retention: float, failed_retention: float | None) -> None:
        """Set for how many seconds ended jobs are kept; ``failed_retention`` None means forever."""
        self._store = store
        self._done_retention = done_retention
        self._failed_retention = failed_retention

    def step(self) -> bool:
        """Remove one lot; return whether it was a full one."""
        with self._store.transaction("removing old jobs") as cursor:
            removed = retention.prune(cursor, self._done_retention, self._failed_retention, PRUNE_LOT)
        if removed:
            log.info("Removed %s jobs that were kept long enough.", removed, extra={"action": "jobs_pruned"})
        return removed >= PRUNE_LOT
