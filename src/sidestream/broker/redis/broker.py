"""Implement the broker on Redis: each method calls one function of ``lua/``.

A job passes through publish, claim, renew, and then settle, release or fail. After the death of a worker: reclaim.
After Redis was emptied: begin_generation, reassert, publish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sidestream.broker.protocol import (
    Capability,
    Delivery,
    Explanation,
    Generation,
    Lease,
    Place,
    Publication,
    Reclaimed,
)
from sidestream.broker.redis import keys
from sidestream.broker.redis.connection import FunctionMissing, NotReady, RedisConnection
from sidestream.broker.redis.entries import TOKEN_SIZE, EntryReader
from sidestream.broker.redis.functions import Functions
from sidestream.broker.redis.probe import information, probe
from sidestream.errors import BrokerUnavailable, StaleGeneration
from sidestream.job.outcome import Release
from sidestream.job.rules import Rules

CHUNK = 500
"""Most jobs in one function call: Redis serves no other client meanwhile (about 5 us per job)."""
FIRST_TOKEN = b"0" * TOKEN_SIZE
"""Less than every token."""
ROUNDING_MS = 100
"""Milliseconds by which two clocks may differ since a claim was sent."""
_PLACES = (
    Place.NOWHERE,
    Place.READY,
    Place.DELAYED,
    Place.BEHIND_KEY,
    Place.LEASED,
    Place.LIMITED,
    Place.PAUSED,
    Place.UNROUTED,
)
Item = TypeVar("Item")


class RedisBroker:
    """Implement :class:`~sidestream.broker.protocol.Broker` on Redis >= 7.0 or any Valkey."""

    capabilities = frozenset(Capability)

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 1.0,
        lease_ms: int = 15_000,
        prefix: str = keys.PREFIX,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        """Prepare the broker without connecting.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``.
            timeout: Seconds that Redis may take to connect or to answer.
            lease_ms: How long a lease lasts without a renewal; the same for all workers of a shard.
            prefix: The start of every key; the part between braces is the hash tag of the shard.
            clock_ms: Unix milliseconds instead of the server's own time, for tests.

        Raises:
            SettingsError: The URL is not a Redis URL.
        """
        self.connection = RedisConnection(url, timeout)
        self.prefix = prefix
        self._functions = Functions(self.connection, prefix, clock_ms)
        self._half_lease = lease_ms // 2
        self._reader = EntryReader(self._functions)
        #: By worker: the last token that it received in this generation, and the monotonic time at which it sent the
        #: first claim whose reply was lost since.
        self._received: dict[str, bytes] = {}
        self._lost_at: dict[str, float] = {}

    def probe(self) -> None:
        """Check that this server may be used; raise BrokerUnavailable or BrokerUnsuitable with the reason."""
        probe(self.connection)
        self._functions.read_generation()  # report missing rights to load or call functions now, not at the first job

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """See :meth:`Broker.generation`."""
        number, synced = self._functions.read_generation([database.hex() for database in databases])
        fields = information(self.connection, "server", "replication")
        if self._functions.generation != str(number):
            self._received.clear()  # tokens start anew
            self._lost_at.clear()
        self._functions.generation = str(number)
        return Generation(number, f"{fields.get('run_id', '')}/{fields.get('master_replid', '')}", synced)

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """See :meth:`Broker.begin_generation`."""
        self._functions.begin()
        return self.generation(databases)

    def mark_synced(self, database: bytes) -> None:
        """See :meth:`Broker.mark_synced`."""
        self._functions.synced(database.hex())

    def configure(self, database: bytes, rules: Rules) -> bool:
        """See :meth:`Broker.configure`."""
        return self._functions.configure(database.hex(), rules)

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """See :meth:`Broker.announce`."""
        self._functions.announce(worker, info, ttl_ms, lanes, actions)

    def withdraw(self, worker: str) -> None:
        """See :meth:`Broker.withdraw`."""
        self._functions.withdraw(worker)

    def is_alive(self, worker: str) -> bool:
        """Return whether a worker is announced now, by the server's clock."""
        return self._functions.alive(worker)

    def take_turn(self, task: str, worker: str, seconds: float) -> bool:
        """Return whether ``worker`` has the turn for ``task``: it had the last turn, or that one expired.

        No other worker then has the turn for ``seconds``. This only saves effort: two workers may do a task at once.
        """
        return self._functions.take_turn(task, worker, round(seconds * 1000))

    def give_turn_back(self, task: str, worker: str) -> None:
        """Let another worker have the turn for ``task`` at once; without effect if this worker does not have it."""
        self._functions.take_turn(task, worker, 0)

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """See :meth:`Broker.publish`; many jobs go in chunks, so after an error the first ones may be published."""
        return sum(self._functions.publish(chunk, force) for chunk in _chunks(jobs))

    def get_ready(self) -> None:
        """See :meth:`AtOnce.get_ready`."""
        self.connection.get_ready()

    def publish_at_once(self, jobs: Sequence[Publication], seconds: float) -> bool:
        """See :meth:`AtOnce.publish_at_once`."""
        try:
            self._functions.publish_at_once(jobs, seconds)
        except (NotReady, FunctionMissing, StaleGeneration):
            return False
        return True

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """See :meth:`Broker.claim`; it waits in a blocking read, so that a new job arrives at once."""
        if not lanes:
            return []
        sent = time.monotonic()
        try:
            found = self._claim(worker, lanes, free, prefetch, wait_ms)
        except BrokerUnavailable:
            self._lost_at.setdefault(worker, sent)  # Redis may have run it all the same
            raise
        if found:
            self._received[worker] = found[-1].lease.entry[:TOKEN_SIZE]
        return found

    def _claim(self, worker: str, lanes: Sequence[str], free: int, prefetch: int, wait_ms: int) -> list[Delivery]:
        deadline = time.monotonic() + wait_ms / 1000
        while True:
            lost_at = self._lost_at.get(worker)
            block_ms, words = self._functions.claim(
                self._half_lease,
                worker,
                free,
                prefetch,
                wait_ms,
                lanes,
                received=b"" if lost_at is None else self._received.get(worker, FIRST_TOKEN),
                lost_ms=0 if lost_at is None else round((time.monotonic() - lost_at) * 1000) + ROUNDING_MS,
            )
            self._lost_at.pop(worker, None)
            if words or not block_ms:
                return self._reader.deliveries(words, worker)
            deliveries = self._wait(worker, free, block_ms)
            wait_ms = int((deadline - time.monotonic()) * 1000)
            if deliveries or wait_ms <= 0:
                return deliveries

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """See :meth:`Broker.renew`."""
        lost = [lease for lease in leases if lease.worker != worker]
        for chunk in _chunks([lease for lease in leases if lease.worker == worker]):
            lost += (chunk[at - 1] for at in self._functions.renew(self._half_lease, chunk))
        return lost

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        """See :meth:`Broker.settle`."""
        lost: list[Lease] = []
        for chunk in _chunks(deliveries):
            by_lane: dict[str, list[bytes]] = {}
            for delivery in chunk:
                entries = by_lane.get(delivery.lane)
                if entries is None:
                    entries = by_lane[delivery.lane] = []
                entries.append(delivery.lease.entry)
            positions = self._functions.settle(by_lane)
            if positions:
                order = [entry for entries in by_lane.values() for entry in entries]
                gone = {order[position - 1] for position in positions}
                lost += (delivery.lease for delivery in chunk if delivery.lease.entry in gone)
        return lost

    def release(self, delivery: Delivery, release: Release) -> int:
        """See :meth:`Broker.release`."""
        return self._functions.release(delivery, release)

    def fail(self, delivery: Delivery, error: str) -> bool:
        """See :meth:`Broker.fail`."""
        return self._functions.fail(delivery, error)

    def retry_failed(self, uuids: Sequence[bytes]) -> int:
        """Make failed direct jobs pending; see :class:`~sidestream.broker.redis.failed.FailedDirectJobs`."""
        return self._functions.retry_failed(uuids)

    def delete_failed(self, uuids: Sequence[bytes]) -> int:
        """Delete failed direct jobs."""
        return self._functions.delete_failed(uuids)

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        """See :meth:`Broker.reclaim`."""
        more, found = self._functions.reclaim(worker, lease_ms, grace_ms, lanes)
        taken: list[tuple[Delivery, str]] = []
        for *words, count, loser in found:
            taken += ((delivery, loser.decode()) for delivery in self._reader.deliveries(words, worker, count))
        return Reclaimed(taken, more)

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """See :meth:`Broker.reassert`."""
        ours: list[Delivery] = []
        for chunk in _chunks(deliveries):
            for position, entry in self._functions.reassert(worker, chunk):
                ours.append(chunk[position - 1]._replace(lease=Lease(entry, worker, 1)))
        return ours

    def published(self, database: bytes, chunk: int) -> bytes:
        """See :meth:`Broker.published`."""
        return self._functions.published(database, chunk)

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """See :meth:`Broker.locate`."""
        return [_PLACES[number] for chunk in _chunks(jobs) for number in self._functions.locate(chunk)[::2]]

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        """See :meth:`Broker.delayed_until`."""
        return [until for chunk in _chunks(jobs) for until in self._functions.locate(chunk)[1::2]]

    def explain(self, job: Publication) -> Explanation:
        """See :meth:`Broker.explain`."""
        place, scope, until, rank, worker, holders = self._functions.explain(job)
        return Explanation(_PLACES[place], scope.decode(), tuple(holders), until, worker.decode(), rank)

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """See :meth:`Broker.reprioritize`."""
        return self._functions.reprioritize(job, priority)

    def discard(self, job: Publication) -> bool:
        """See :meth:`Broker.discard`."""
        return self._functions.discard(job)

    def close(self) -> None:
        """See :meth:`Broker.close`."""
        self.connection.close()

    def _wait(self, worker: str, free: int, block_ms: int) -> list[Delivery]:
        seconds = block_ms / 1000
        reply = self.connection.run(
            "BLMPOP", seconds, 1, keys.handoff(self.prefix, worker), "LEFT", "COUNT", free, wait=seconds
        )
        return self._reader.handed(reply[1], worker) if reply else []


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
