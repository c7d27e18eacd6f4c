"""Implement the broker on Redis: each method calls one function of ``lua/``.

A job passes through publish, claim, renew, and then settle, release or fail. After the death of a worker: reclaim.
After Redis was emptied: begin_generation, reassert, publish.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha1
from typing import Any, TypeVar
from uuid import UUID

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
from sidestream.broker.redis.rules_wire import pack_rules
from sidestream.errors import BrokerUnavailable, FormatUnknown, StaleGeneration
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
        """Check the server; raise BrokerUnavailable or BrokerUnsuitable with the reason."""
        probe(self.connection)
        self._read_generation()  # report missing rights to load or call functions now, not at the first job

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        number, synced = self._read_generation(databases)
        fields = information(self.connection, "server", "replication")
        if self._functions.generation != str(number):
            self._received.clear()  # tokens start anew
            self._lost_at.clear()
        self._functions.generation = str(number)
        return Generation(number, f"{fields.get('run_id', '')}/{fields.get('master_replid', '')}", synced)

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        self._functions.call("begin")
        return self.generation(databases)

    def mark_synced(self, database: bytes) -> None:
        self._functions.call("mark_synced", database.hex())

    def configure(self, database: bytes, rules: Rules) -> bool:
        packed = pack_rules(rules)
        digest = sha1(packed, usedforsecurity=False).hexdigest()[:12]
        return bool(self._functions.call("configure", database.hex(), rules.version, digest, packed)[0])

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        tags = sorted(actions or ())
        digest = "" if actions is None else sha1(b"".join(tags), usedforsecurity=False).hexdigest()
        self._functions.call("announce", worker, info, ttl_ms, digest, len(tags), *tags, *lanes)

    def withdraw(self, worker: str) -> None:
        self._functions.call("withdraw", worker)

    def is_alive(self, worker: str) -> bool:
        """Return whether a worker is announced now, by the server's clock."""
        return bool(self._functions.call("alive", worker)[0])

    def take_turn(self, task: str, worker: str, seconds: float) -> bool:
        """Take the turn for ``task`` unless another worker has it; return whether it was taken.

        No other worker then has the turn for ``seconds``. This only saves effort: two workers may do a task at once.
        """
        return bool(self._functions.call("take_turn", task, worker, round(seconds * 1000))[0])

    def give_turn_back(self, task: str, worker: str) -> None:
        """Give back the turn for ``task`` if ``worker`` has it."""
        self._functions.call("take_turn", task, worker, 0)

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """See :meth:`Broker.publish`; jobs are sent in chunks, so an error may come after some."""
        return sum(int(self._functions.call("publish", *_published(chunk, force))[0]) for chunk in _chunks(jobs))

    def get_ready(self) -> None:
        self.connection.get_ready()

    def publish_at_once(self, jobs: Sequence[Publication], seconds: float) -> bool:
        try:
            self._functions.call_at_once("publish", *_published(jobs, force=False), seconds=seconds)
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
            received, lost_ms = b"", 0
            if (lost_at := self._lost_at.get(worker)) is not None:  # jobs that were leased since then come first
                received = self._received.get(worker, FIRST_TOKEN)
                lost_ms = round((time.monotonic() - lost_at) * 1000) + ROUNDING_MS
            block_ms, words = self._functions.call(
                "claim", self._half_lease, worker, free, prefetch, wait_ms, received, lost_ms, *lanes
            )
            self._lost_at.pop(worker, None)
            if words or not block_ms:
                return self._reader.deliveries(words, worker)
            deliveries = self._wait(worker, free, block_ms)
            wait_ms = int((deadline - time.monotonic()) * 1000)
            if deliveries or wait_ms <= 0:
                return deliveries

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        lost = [lease for lease in leases if lease.worker != worker]
        for chunk in _chunks([lease for lease in leases if lease.worker == worker]):
            positions = self._functions.call("renew", self._half_lease, *(lease.entry for lease in chunk))
            lost += (chunk[at - 1] for at in positions)
        return lost

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        lost: list[Lease] = []
        for chunk in _chunks(deliveries):
            by_lane: dict[str, list[bytes]] = {}
            for delivery in chunk:
                by_lane.setdefault(delivery.lane, []).append(delivery.lease.entry)
            sections = (word for lane, entries in by_lane.items() for word in (lane, len(entries), *entries))
            positions = self._functions.call("settle", *sections)
            if positions:
                order = [entry for entries in by_lane.values() for entry in entries]
                gone = {order[position - 1] for position in positions}
                lost += (delivery.lease for delivery in chunk if delivery.lease.entry in gone)
        return lost

    def release(self, delivery: Delivery, release: Release) -> int:
        reply = self._functions.call(
            "release",
            delivery.lease.entry,
            delivery.lane,
            delivery.ready_ms,
            "" if release.delay_ms is None else release.delay_ms,
            "" if release.blocked_by is None else release.blocked_by,
            int(release.charge_attempt),
            int(release.charge_crash),
            int(release.count),
            int(release.unstarted),
        )
        return int(reply[0])

    def fail(self, delivery: Delivery, error: str) -> bool:
        return bool(self._functions.call("fail", delivery.lease.entry, delivery.lane, error)[0])

    def retry_failed(self, uuids: Sequence[UUID]) -> int:
        """Retry a few hundred failed direct jobs now, with their counts reset; return how many.

        :class:`~sidestream.broker.redis.failed.FailedDirectJobs` lists them.
        """
        return int(self._functions.call("retry_failed", *(one.bytes for one in uuids))[0])

    def delete_failed(self, uuids: Sequence[UUID]) -> int:
        """Delete a few hundred failed direct jobs; return how many there were."""
        return int(self._functions.call("delete_failed", *(one.bytes for one in uuids))[0])

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        more, *found = self._functions.call("reclaim", worker, lease_ms, grace_ms, *lanes)
        taken: list[tuple[Delivery, str]] = []
        for *words, count, loser in found:
            taken += ((delivery, loser.decode()) for delivery in self._reader.deliveries(words, worker, count))
        return Reclaimed(taken, bool(more))

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        ours: list[Delivery] = []
        for chunk in _chunks(deliveries):
            words: list[Any] = [worker]
            for reference, lane, _, ready_ms, payload, attempts, crashes, releases, priority in chunk:
                words += (reference, lane, priority, ready_ms, payload or b"", attempts, crashes, releases)
            for position, entry in self._functions.call("reassert", *words):
                ours.append(chunk[position - 1]._replace(lease=Lease(entry, worker, 1)))
        return ours

    def published(self, database: bytes, chunk: int) -> bytes:
        bitmap: bytes = self._functions.call("published", database, chunk)[0]
        return bitmap

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        return [_PLACES[number] for number, _ in self._locate(jobs)]

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        return [until for _, until in self._locate(jobs)]

    def explain(self, job: Publication) -> Explanation:
        place, scope, until, rank, worker, *holders = self._functions.call("explain", *_where(job))
        return Explanation(_PLACES[place], scope.decode(), tuple(holders), until, worker.decode(), rank)

    def reprioritize(self, job: Publication, priority: int) -> bool:
        return bool(self._functions.call("reprioritize", *_where(job), priority)[0])

    def discard(self, job: Publication) -> bool:
        return bool(self._functions.call("discard", *_where(job))[0])

    def close(self) -> None:
        self.connection.close()

    def _read_generation(self, databases: Sequence[bytes] = ()) -> tuple[int, frozenset[str]]:
        """Return the generation's number, and which databases are synced (16 hex digits each).

        Raises:
            FormatUnknown: Another release wrote it, in a format that this one does not know.
        """
        names = [database.hex() for database in databases]
        number, found, known, *synced = self._functions.call("generation", *names)
        if int(number) and found != known:
            raise FormatUnknown(
                f"Redis holds contents of format {found.decode() or 'none'}, and this release of Sidestream knows "
                f"format {known.decode()}. Nothing is read or written here until all processes are of one release and "
                "Redis was emptied (FLUSHALL); jobs that have a row are then published again."
            )
        return int(number), frozenset(name for name, is_synced in zip(names, synced, strict=True) if is_synced)

    def _locate(self, jobs: Sequence[Publication]) -> Iterator[tuple[int, int]]:
        """Yield each job's place number (``lua/shared/find.lua``) and the end of its delay, or 0."""
        for chunk in _chunks(jobs):
            found = self._functions.call("locate", *(word for job in chunk for word in _where(job)))
            yield from zip(found[::2], found[1::2], strict=True)

    def _wait(self, worker: str, free: int, block_ms: int) -> list[Delivery]:
        seconds = block_ms / 1000
        reply = self.connection.run(
            "BLMPOP", seconds, 1, keys.handoff(self.prefix, worker), "LEFT", "COUNT", free, wait=seconds
        )
        return self._reader.handed(reply[1], worker) if reply else []


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _where(job: Publication) -> tuple[bytes, str, int]:
    """Return the arguments by which ``lua/shared/find.lua`` finds a job."""
    return job.reference, job.lane, job.priority


def _published(jobs: Sequence[Publication], force: bool) -> Iterator[Any]:
    """Return the arguments of ``publish`` after its clock."""
    by_lane: dict[str, list[Any]] = {}
    for reference, lane, due_ms, payload, attempted, priority, edited, withdrawn in jobs:
        words = by_lane.setdefault(lane, [])
        words += (reference, priority, due_ms, _mode(attempted, edited, withdrawn), payload or b"")
    yield int(force)
    for lane, words in by_lane.items():
        yield lane
        yield len(words) // 5
        yield from words


def _mode(attempted: bool, edited: bool, withdrawn: bool) -> str:
    """Return the mode of a publication, as ``lua/publish.lua`` lists them."""
    if withdrawn:
        return "withdrawn"
    if edited:
        return "edited_attempted" if attempted else "edited"
    return "attempted" if attempted else "new"
