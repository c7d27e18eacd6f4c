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
    """Cancels expired jobs. A job that is claimed first is cancelled by its own opening: nothing hangs on this step."""

    name = "expirer"
    every = 1.0

    def __init__(self, broker: Broker, link: StoreConnection) -> None:
        """Cancel the rows behind ``link``; ``broker`` is the maintenance' own."""
        self._broker = broker
        self._link = link

    def step(self) -> bool:
        """Cancel one lot; return whether it was a full one."""
        with self._link.cursor("cancelling expired jobs") as cursor:
            ended = bulk.expire(cursor, LOT)
        if not ended:
            return False
        log.info("Cancelled %s jobs that expired.", len(ended), extra={"action": "jobs_expired"})
        database = self._link.database()
        for job in ended:
            # What is lost here is settled when it is claimed: its row is over.
            self._broker.discard(publication_of(job, database))
        return len(ended) == LOT
