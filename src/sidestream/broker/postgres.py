"""PostgreSQL as the broker, for when Redis is away (design D13): slower, under the same promises.

The rows themselves are what waits. A claim reads candidates without locks, in READ COMMITTED; the statement that opens
a job (D2) takes the row's lock, and that lock is the lease: it ends with the session of whoever holds it. What this
process holds or has put off is left out of its own claims, in memory only.
"""

# the contract's signatures, also where an argument makes no difference
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from sidestream.broker.protocol import (
    FALLBACK_PREFIX,
    Capability,
    Delivery,
    Generation,
    Lease,
    Place,
    Publication,
    Reclaimed,
)
from sidestream.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnsuitable,
    CapabilityMissing,
    StoreError,
    StoreUnavailable,
)
from sidestream.job.reference import Reference
from sidestream.store import queries, schema
from sidestream.store.adapter import translate
from sidestream.store.rows import StoredJob

POLL = 0.2
"""Seconds between two looks while a claim waits; a publication in this process ends the pause at once."""
BLOCKED_PAUSE_MS = 100
"""How long a blocked job is left out here, in case its blocker was still open when the query looked."""
FORGET_AFTER = 600.0
"""Seconds after which a job that was put off and never came back is forgotten here (it ran elsewhere)."""


@dataclass(slots=True)
class _PutOff:
    until: float
    releases: int


class PostgresBroker:
    """Keeps :class:`~sidestream.broker.protocol.Broker` for rows, without leases that could be reclaimed."""

    capabilities = frozenset({Capability.SHARED})

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], database: schema.Database) -> None:
        """Serve the rows of ``database``; ``connect`` opens an autocommit connection, or raises StoreUnavailable."""
        self._connect = connect
        self._database = database
        self._connection: psycopg.Connection[Any] | None = None
        self._querying = threading.Lock()
        self._changed = threading.Condition()
        self._held: dict[bytes, tuple[int, Lease]] = {}
        self._put_off: dict[int, _PutOff] = {}
        self._entries = 0
        self._closed = False

    def generation(self) -> Generation:
        """See :meth:`Broker.generation`; the rows are the contents, so there is one for ever."""
        self._check()
        return Generation(1, self._database.uuid.hex, frozenset({self._database.tag.hex()}))

    def begin_generation(self) -> Generation:
        """See :meth:`Broker.begin_generation`."""
        return self.generation()

    def mark_built(self, database: bytes) -> None:
        """See :meth:`Broker.mark_built`; always true."""
        self._check()

    def announce(self, consumer: str, lanes: Sequence[str], info: str, ttl_ms: int) -> None:
        """See :meth:`Broker.announce`; nobody asks who serves a row."""
        self._check()

    def withdraw(self, consumer: str, lanes: Sequence[str]) -> None:
        """See :meth:`Broker.withdraw`."""
        self._check()

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """See :meth:`Broker.publish`; the rows stand there already; waiting claims of this process look again."""
        self._check()
        if any(Reference.unpack(job.reference).direct for job in jobs):
            raise CapabilityMissing("PostgreSQL carries no direct jobs; they wait until Redis answers again.")
        with self._changed:
            self._changed.notify_all()
        return 0

    def claim(
        self, consumer: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """See :meth:`Broker.claim`; another process may be handed the same row, and finds it locked."""
        deadline = time.monotonic() + wait_ms / 1000
        ours = self._database.tag.hex()
        queues = {lane.partition(":")[2]: lane for lane in lanes if lane.partition(":")[0] == ours}
        while True:
            self._check()
            found = self._grant(consumer, queues, self._candidates(list(queues), free + prefetch), free, prefetch)
            rest = deadline - time.monotonic()
            if found or rest <= 0 or not free:
                return found
            with self._changed:
                self._changed.wait(min(rest, POLL))

    def renew(self, consumer: str, lanes: Sequence[str], leases: Sequence[Lease]) -> list[Lease]:
        """See :meth:`Broker.renew`; a row's lock needs no renewal."""
        self._check()
        with self._changed:
            held = {lease for _, lease in self._held.values()}
            return [lease for lease in leases if lease.consumer != consumer or lease not in held]

    def settle(self, lanes: Sequence[str], deliveries: Sequence[Delivery]) -> list[Lease]:
        """See :meth:`Broker.settle`."""
        self._check()
        with self._changed:
            lost = []
            for delivery in deliveries:
                row_id = self._let_go(delivery)
                if row_id is None:
                    lost.append(delivery.lease)
                else:
                    self._put_off.pop(row_id, None)
            self._changed.notify_all()
            return lost

    def release(
        self,
        lanes: Sequence[str],
        delivery: Delivery,
        *,
        delay_ms: int | None = 0,
        blocked_by: int | None = None,
        charge_attempt: bool = False,
        charge_crash: bool = False,
        count: bool = True,
    ) -> int:
        """See :meth:`Broker.release`."""
        self._check()
        with self._changed:
            row_id = self._let_go(delivery)
            if row_id is None:
                return -1
            before = self._put_off.get(row_id)
            releases = before.releases if before else 0
            releases = 0 if charge_attempt or charge_crash else releases + count
            if delay_ms is None or blocked_by is not None:
                # Blocked rows are left out by the query itself, so a long delay would only outlast the blocker.
                delay_ms = (
                    min(30_000, 50 * 2 ** min(max(releases - 1, 0), 10)) if blocked_by is None else BLOCKED_PAUSE_MS
                )
            self._put_off[row_id] = _PutOff(time.monotonic() + delay_ms / 1000, releases)
            self._changed.notify_all()
            return releases

    def bury(self, lanes: Sequence[str], delivery: Delivery, error: str) -> bool:
        """See :meth:`Broker.bury`; a row is buried by the store, so this is only for direct jobs."""
        raise CapabilityMissing("PostgreSQL carries no direct jobs, so none can be buried here.")

    def reclaim(self, consumer: str, lanes: Sequence[str], *, lease_ms: int, renew_ms: int, cursor: str) -> Reclaimed:
        """See :meth:`Broker.reclaim`; a lock ends with its session, and then the row is claimable by itself."""
        self._check()
        return Reclaimed("0-0", [])

    def reassert(self, consumer: str, lanes: Sequence[str], deliveries: Sequence[Delivery]) -> list[Delivery]:
        """See :meth:`Broker.reassert`."""
        self._check()
        with self._changed:
            return [one for one in deliveries if self._held.get(one.reference, (0, None))[1] == one.lease]

    def known(self, database: bytes, chunk: int) -> bytes:
        """See :meth:`Broker.known`; there is nothing to compare the rows with."""
        raise CapabilityMissing("PostgreSQL keeps no known bits: the rows themselves are what waits.")

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """See :meth:`Broker.locate`; every row waits where it is."""
        self._check()
        with self._changed:
            return [Place.HANDED_OFF if job.reference in self._held else Place.READY for job in jobs]

    def discard(self, job: Publication) -> bool:
        """See :meth:`Broker.discard`; a row that ended is no candidate any more."""
        self._check()
        return job.reference not in self._held

    def close(self) -> None:
        """See :meth:`Broker.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._querying:
            self._disconnect()

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The PostgreSQL broker was closed; make a new one.")

    def _candidates(self, queue_names: Sequence[str], limit: int) -> list[StoredJob]:
        if not queue_names or not limit:
            return []
        with self._changed:
            now = time.monotonic()
            for row_id in [one for one, put_off in self._put_off.items() if put_off.until < now - FORGET_AFTER]:
                del self._put_off[row_id]
            away = [row_id for row_id, _ in self._held.values()]
            away += (row_id for row_id, put_off in self._put_off.items() if put_off.until > now)
        with self._querying:
            try:
                with self._opened().cursor() as cursor:
                    return queries.open_and_due(cursor, queue_names, limit, excluded=away)
            except (psycopg.Error, OSError, StoreError) as error:
                self._disconnect()
                raise _refused(translate(error, "looking for open jobs")) from error

    def _grant(
        self, consumer: str, lanes: dict[str, str], jobs: Sequence[StoredJob], free: int, prefetch: int
    ) -> list[Delivery]:
        found: list[Delivery] = []
        with self._changed:
            for job in jobs:
                reference = job.reference(self._database)
                if reference in self._held:
                    continue  # another thread of this process was quicker
                if len(found) >= free + prefetch or (len(found) >= free and job.key is not None):
                    break
                self._entries += 1
                lease = Lease(b"%s%d" % (FALLBACK_PREFIX, self._entries), consumer, 1)
                self._held[reference] = (job.id, lease)
                put_off = self._put_off.get(job.id)
                found.append(
                    Delivery(
                        reference, lanes[job.queue], lease, job.due_ms, releases=put_off.releases if put_off else 0
                    )
                )
        return found

    def _let_go(self, delivery: Delivery) -> int | None:
        row_id, lease = self._held.get(delivery.reference, (0, None))
        if lease != delivery.lease:
            return None
        del self._held[delivery.reference]
        return row_id

    def _opened(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = self._connect()
            try:
                with connection.cursor() as cursor:
                    found = schema.identify(cursor)
            except BaseException:
                connection.close()
                raise
            if found != self._database:
                connection.close()
                raise BrokerUnsuitable(
                    f"The database behind the worker's address was {self._database.uuid} and is now {found.uuid}; "
                    "restart the worker."
                )
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _refused(error: StoreError) -> BrokerError:
    kind = BrokerUnavailable if isinstance(error, StoreUnavailable) else BrokerUnsuitable
    return kind(str(error))
