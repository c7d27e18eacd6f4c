"""Cancel jobs whose start deadline has passed, and remove their references from the broker."""

from __future__ import annotations

import logging

from sidestream.broker.protocol import Broker
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.relay.publications import publication_of
from sidestream.store import bulk

log = logging.getLogger(__name__)

LOT = 100
"""Most jobs that one step cancels: each is taken out of the broker as well."""


class ExpiryTask:
    """Cancels expired jobs. A job that is claimed before is cancelled when its row is acquired."""

    name = "expiry"
    every = 1.0

    def __init__(self, broker: Broker, store: StoreConnection) -> None:
        """Cancel the rows behind ``store``; ``broker`` belongs to maintenance alone."""
        self._broker = broker
        self._store = store

    def step(self) -> bool:
        """Cancel one lot; return whether it was a full one."""
        with self._store.cursor("cancelling expired jobs") as cursor:
            ended = bulk.expire(cursor, LOT)
        if not ended:
            return False
        log.info("Cancelled %s jobs that expired.", len(ended), extra={"action": "jobs_expired"})
        database = self._store.database()
        for job in ended:
            # A discard that fails is harmless: a worker that claims the job finds its row ended.
            self._broker.discard(publication_of(job, database))
        return len(ended) == LOT
