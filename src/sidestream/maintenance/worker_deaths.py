"""Charge the jobs that may have killed their worker, from PostgreSQL alone.

Leases tell of a death, too, but not while Redis is away, nor after it was emptied. A worker that starts therefore looks
before it claims anything, and maintenance looks again:

1. the dead workers of this host, whose slots say what ran: their sessions are ended, so that their rows are free;
2. workers that PostgreSQL knows, that hold no lock there and are not announced in Redis: what they had started counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from sidestream.errors import BrokerError, StoreError, WireError
from sidestream.job.observer import JobFailure
from sidestream.job.reference import Reference
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import deaths, sessions

log = logging.getLogger(__name__)


class WorkerDeaths:
    """Finds dead workers and charges their jobs."""

    name = "worker deaths"
    every = 5.0

    def __init__(
        self,
        store: StoreConnection,
        *,
        dead_here: Callable[[], Mapping[str, frozenset[bytes]]],
        announced: Callable[[str], bool],
        turn: Callable[[], bool] = lambda: True,
        on_failed: Callable[[JobFailure], None] = lambda failure: None,
    ) -> None:
        """Look at nothing yet.

        Args:
            store: Where the rows are.
            dead_here: The references that the dead workers of this host were running, by worker.
            announced: Whether a worker is announced in Redis; raises BrokerError when Redis cannot be asked.
            turn: Whether maintenance is to look at the workers of other hosts here, and nowhere else at this moment.
            on_failed: Called with each job that failed by the death of its worker.
        """
        self._store = store
        self._dead_here = dead_here
        self._announced = announced
        self._turn = turn
        self._on_failed = on_failed
        self._charged: set[str] = set()
        #: Whether a dead worker was found: what runs next may be what killed it.
        self.found = False

    def step(self) -> bool:
        """Charge what can be charged now; see :class:`~sidestream.maintenance.task.MaintenanceTask`."""
        self._charge_here()
        if self._turn():
            self._charge_elsewhere()
        return False

    def charge(self) -> None:
        """Charge what can be charged now, without waiting for a turn; raises StoreError when PostgreSQL is away."""
        self._charge_here()
        self._charge_elsewhere()

    def _charge_here(self) -> None:
        here = self._dead_here()
        self._charged &= here.keys()
        for worker in here.keys() - self._charged:
            end_sessions(self._store, worker)
            if self._charge(worker, here[worker]):
                self._charged.add(worker)

    def _charge_elsewhere(self) -> None:
        with self._store.cursor("looking for dead workers") as cursor:
            silent = deaths.without_lock(cursor)
        for worker in silent:
            if not self._is_announced(worker):
                self._charge(worker, ())

    def _charge(self, worker: str, running: Iterable[bytes]) -> bool:
        self.found = True
        database = self._store.database().tag
        failed: list[JobFailure] = []
        with self._store.transaction("charging the jobs of a dead worker") as cursor:
            charged = deaths.charge_all(cursor, worker, _rows(running, database), failed)
        for failure in failed:
            self._on_failed(failure)
        if charged:
            log.info("The worker %s died; what it ran is noted.", worker, extra={"action": "worker_death_charged"})
        return charged is not None

    def _is_announced(self, worker: str) -> bool:
        try:
            return self._announced(worker)
        except BrokerError as error:
            log.debug("PostgreSQL alone tells whether %s lives: %s", worker, error)
            return False


def end_sessions(store: StoreConnection, worker: str) -> None:
    """End the sessions of a dead worker, so that its rows are free; raise StoreError while one does not end."""
    with store.cursor("ending the sessions of a dead worker") as cursor:
        gone, _ = sessions.terminate_worker(cursor, worker)
    if not gone:
        raise StoreError(f"A PostgreSQL session of the dead worker {worker} does not end; it is ended again.")


def _rows(references: Iterable[bytes], database: bytes) -> list[int]:
    """Return the ids of those that are rows of ``database``."""
    found = []
    for packed in references:
        try:
            reference = Reference.unpack(packed)
        except WireError as error:
            log.warning("A slot of a dead worker cannot be read: %s", error, extra={"action": "slot_unread"})
            continue
        if not reference.direct and reference.database == database:
            found.append(reference.id)
    return found
