"""Remove rows that are kept long enough."""

from __future__ import annotations

import logging

from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import retention

log = logging.getLogger(__name__)

PRUNE_LOT = 1000
"""Most jobs that one step removes, with their attempts: some 20 ms of PostgreSQL's time."""


class RetentionTask:
    """Deletes ended jobs in small lots, so that no statement holds many locks or makes much WAL at once."""

    name = "janitor"
    every = 60.0

    def __init__(self, link: StoreConnection, *, done_retention: float, failed_retention: float | None) -> None:
        """Keep done and cancelled jobs for ``done_retention``, dead ones for ``failed_retention`` (None: for ever)."""
        self._link = link
        self._keep_done_days = done_retention
        self._keep_dead_days = failed_retention

    def step(self) -> bool:
        """Remove one lot; return whether it was a full one."""
        with self._link.transaction("removing old jobs") as cursor:
            removed = retention.prune(cursor, self._keep_done_days, self._keep_dead_days, PRUNE_LOT)
        if removed:
            log.info("Removed %s jobs that were kept long enough.", removed, extra={"action": "jobs_pruned"})
        return removed >= PRUNE_LOT
