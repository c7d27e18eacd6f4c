"""The memory broker: the contract in one process, one lock and a few heaps. Unit tests run on it.

A job is in one place at a time (:class:`~sidestream.broker.protocol.Place`). The heaps are lazy: an item that no longer
says the truth about its job is skipped when it comes up, so nothing is ever searched in them.
"""

# the contract's signatures, also where an argument makes no difference
from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from sidestream.broker.protocol import CHUNK, Capability, Delivery, Generation, Lease, Place, Publication, Reclaimed
from sidestream.errors import BrokerUnavailable, GenerationMoved
from sidestream.job.reference import NO_TAG8, Reference

PROMOTE_MOST = RECLAIM_MOST = 100
"""Most due jobs of a lane that one claim promotes, most deliveries that one call takes over."""
_Heap = list[tuple[int, bytes]]
_Key = tuple[bytes, bool, bytes]


@dataclass(slots=True)
class _Job:
    reference: bytes
    lane: str
    key: _Key | None
    rank: int
    ready_ms: int
    #: When its row says that it is due; 0 when that has passed or does not matter.
    due_ms: int
    payload: bytes | None
    place: Place = Place.NOWHERE
    #: Delayed: until when it waits, for whatever reason.
    until_ms: int = 0
    lease: Lease | None = None
    renewed_ms: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    deliveries: int = 0


class MemoryBroker:
    """Keeps :class:`~sidestream.broker.protocol.Broker` in memory; its leases end with the process."""

    capabilities = frozenset({Capability.DIRECT, Capability.KNOWN})

    def __init__(self, *, lease_ms: int = 15_000, clock_ms: Callable[[], int] | None = None) -> None:
        """Begin empty; ``clock_ms`` gives Unix milliseconds, ``lease_ms`` is what the gap rule halves."""
        self._now = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._half_lease = lease_ms // 2
        self._changed = threading.Condition()
        self._number = 0
        self._built: set[str] = set()
        self._jobs: dict[bytes, _Job] = {}
        self._dead: dict[bytes, tuple[_Job, str]] = {}
        self._known: dict[tuple[bytes, int], bytearray] = {}
        self._ready: dict[str, _Heap] = defaultdict(list)
        self._delayed: dict[str, _Heap] = defaultdict(list)
        self._held: dict[str, set[bytes]] = defaultdict(set)
        self._heads: dict[_Key, _Job] = {}
        self._lines: dict[_Key, _Heap] = defaultdict(list)
        self._last_ms = self._gap_ms = self._tokens = 0
        self._closed = False

    def generation(self) -> Generation:
        """See :meth:`Broker.generation`."""
        self._check_open()
        return Generation(self._number, "memory", frozenset(self._built))

    def begin_generation(self) -> Generation:
        """See :meth:`Broker.begin_generation`."""
        self._number = self._number or max(1, self._now())
        return self.generation()

    def mark_built(self, database: bytes) -> None:
        """See :meth:`Broker.mark_built`."""
        self._check()
        self._built.add(database.hex())

    def announce(self, consumer: str, lanes: Sequence[str], info: str, ttl_ms: int) -> None:
        """See :meth:`Broker.announce`; one process has nobody to tell."""
        self._check()

    def withdraw(self, consumer: str, lanes: Sequence[str]) -> None:
        """See :meth:`Broker.withdraw`."""
        self._check()

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """See :meth:`Broker.publish`."""
        self._check()
        with self._changed:
            count = sum(self._publish(job, force) for job in jobs)
            self._changed.notify_all()
            return count

    def claim(
        self, consumer: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """See :meth:`Broker.claim`."""
        self._check()
        deadline = time.monotonic() + wait_ms / 1000
        with self._changed:
            while True:
                self._beat()
                found = self._take(consumer, lanes, free, prefetch)
                rest = deadline - time.monotonic()
                if found or rest <= 0 or not free:
                    return found
                due = min((heap[0][0] for lane in lanes if (heap := self._delayed[lane])), default=None)
                self._changed.wait(rest if due is None else min(rest, max(0.001, (due - self._now()) / 1000)))
                self._check()

    def renew(self, consumer: str, lanes: Sequence[str], leases: Sequence[Lease]) -> list[Lease]:
        """See :meth:`Broker.renew`."""
        self._check()
        with self._changed:
            self._beat()
            held = {job.lease: job for lane in lanes for job in self._holding(lane)}
            lost = []
            for lease in leases:
                if lease.consumer == consumer and (job := held.get(lease)):
                    job.renewed_ms = self._now()
                else:
                    lost.append(lease)
            return lost

    def settle(self, lanes: Sequence[str], deliveries: Sequence[Delivery]) -> list[Lease]:
        """See :meth:`Broker.settle`."""
        self._check()
        with self._changed:
            return [delivery.lease for delivery in deliveries if not self._end(delivery)]

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
            job = self._held_as(delivery)
            if job is None:
                return -1
            if charge_attempt or charge_crash:
                job.releases = 0
                if job.payload is not None:
                    job.attempts += 1
                    job.crashes += charge_crash
            else:
                job.releases += count
            if delay_ms is None or (blocked_by is not None and not delay_ms):
                delay_ms = min(30_000, 50 * 2 ** min(max(job.releases - 1, 0), 10))
            until = self._now() + delay_ms if delay_ms else 0
            job.due_ms = 0 if blocked_by is not None else until
            self._let_go(job)
            self._stand_back(job, until)
            self._changed.notify_all()
            return job.releases

    def bury(self, lanes: Sequence[str], delivery: Delivery, error: str) -> bool:
        """See :meth:`Broker.bury`."""
        self._check()
        with self._changed:
            job = self._held_as(delivery)
            if job is not None and job.payload is not None:
                self._dead[job.reference] = (job, error)
            return job is not None and self._end(delivery)

    def reclaim(self, consumer: str, lanes: Sequence[str], *, lease_ms: int, renew_ms: int, cursor: str) -> Reclaimed:
        """See :meth:`Broker.reclaim`."""
        self._check()
        with self._changed:
            self._beat()
            now = self._now()
            if self._gap_ms and now - self._gap_ms < renew_ms:
                return Reclaimed("0-0", [])
            late = [job for lane in lanes for job in self._holding(lane) if now - job.renewed_ms >= lease_ms]
            late.sort(key=lambda job: job.renewed_ms)
            taken = []
            for job in late[:RECLAIM_MOST]:
                loser = job.lease.consumer if job.lease else ""
                taken.append((self._grant(job, consumer), loser))
            return Reclaimed(f"{int(cursor.partition('-')[0]) + 1}-0" if len(late) > RECLAIM_MOST else "0-0", taken)

    def reassert(self, consumer: str, lanes: Sequence[str], deliveries: Sequence[Delivery]) -> list[Delivery]:
        """See :meth:`Broker.reassert`; these contents are never emptied: what is not lost is still held."""
        self._check()
        return [delivery for delivery in deliveries if self._held_as(delivery)]

    def known(self, database: bytes, chunk: int) -> bytes:
        """See :meth:`Broker.known`."""
        self._check()
        return bytes(self._known.get((database, chunk), b""))

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """See :meth:`Broker.locate`."""
        self._check()
        with self._changed:
            return [found.place if (found := self._jobs.get(job.reference)) else Place.NOWHERE for job in jobs]

    def discard(self, job: Publication) -> bool:
        """See :meth:`Broker.discard`."""
        self._check()
        with self._changed:
            found = self._jobs.get(job.reference)
            if found and found.place is not Place.HANDED_OFF:
                self._forget(found)
            return found is not None and found.place is Place.NOWHERE

    def close(self) -> None:
        """See :meth:`Broker.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The memory broker was closed; make a new one.")

    def _check(self) -> None:
        self._check_open()
        if not self._number:
            raise GenerationMoved("No generation was begun in the memory broker; call begin_generation().")

    def _beat(self) -> None:
        now = self._now()
        if self._last_ms and now - self._last_ms > self._half_lease:
            self._gap_ms = now
        self._last_ms = now

    def _publish(self, job: Publication, force: bool) -> bool:
        named = Reference.unpack(job.reference)
        if named.direct:
            if job.reference in self._jobs or job.reference in self._dead:
                return False
        elif self._mark(named, known=True) and not (force and job.reference not in self._jobs):
            return False
        now = self._now()
        key = None if named.key == NO_TAG8 else (named.database, named.direct, named.key)
        ready = job.due_ms or now
        rank = ready if named.direct else named.id
        one = _Job(job.reference, job.lane, key, rank, ready, job.due_ms, job.payload)
        self._jobs[job.reference] = one
        if job.due_ms > now and not (key and job.attempted):
            self._place(one, job.due_ms)
        else:
            self._stand(one, job.due_ms)
        return True

    def _mark(self, named: Reference, *, known: bool) -> bool:
        if named.direct:
            return False
        chunk, bit = divmod(named.id, CHUNK)
        bits = self._known.setdefault((named.database, chunk), bytearray())
        byte, mask = bit // 8, 0x80 >> bit % 8
        bits.extend(bytes(max(0, byte + 1 - len(bits))))
        before = bool(bits[byte] & mask)
        bits[byte] = bits[byte] | mask if known else bits[byte] & ~mask
        return before

    def _take(self, consumer: str, lanes: Sequence[str], free: int, prefetch: int) -> list[Delivery]:
        for lane in lanes:
            self._promote(lane)
        found: list[Delivery] = []
        while len(found) < free + prefetch:
            firsts = ((job.ready_ms, job.reference, job) for lane in lanes if (job := self._first(lane)))
            oldest = min(firsts, default=(0, b"", None))[2]
            if oldest is None or (len(found) >= free and oldest.key):
                break
            found.append(self._grant(oldest, consumer))
        return found

    def _promote(self, lane: str) -> None:
        heap, now = self._delayed[lane], self._now()
        for _ in range(PROMOTE_MOST):
            if not heap or heap[0][0] > now:
                return
            until, reference = heappop(heap)
            job = self._jobs.get(reference)
            if job and job.place is Place.DELAYED and job.until_ms == until:
                job.due_ms = 0
                self._stand(job, 0)

    def _first(self, lane: str) -> _Job | None:
        heap = self._ready[lane]
        while heap:
            ready, reference = heap[0]
            job = self._jobs.get(reference)
            if job and job.place is Place.READY and job.ready_ms == ready:
                return job
            heappop(heap)
        return None

    def _place(self, job: _Job, until: int) -> None:
        job.until_ms = until
        if until > self._now():
            job.place = Place.DELAYED
            heappush(self._delayed[job.lane], (until, job.reference))
        else:
            job.place = Place.READY
            heappush(self._ready[job.lane], (job.ready_ms, job.reference))

    def _stand(self, job: _Job, until: int) -> None:
        head = self._heads.get(job.key) if job.key else None
        if job.key is None or head is None or head is job:
            self._become_head(job, until)
        elif _turn(job) < _turn(head) and head.place is not Place.HANDED_OFF:
            self._join_line(head)
            self._become_head(job, until)
        else:
            self._join_line(job)

    def _stand_back(self, job: _Job, until: int) -> None:
        """A job comes back from its worker: it stays head unless a smaller id stands in line by now."""
        first = self._next_in_line(job.key)
        if job.key and first and _turn(first) < _turn(job) and self._heads.get(job.key) is job:
            self._join_line(job)
            self._seat_next(job.key)
        else:
            self._stand(job, until)

    def _become_head(self, job: _Job, until: int) -> None:
        if job.key:
            self._heads[job.key] = job
        self._place(job, until)

    def _join_line(self, job: _Job) -> None:
        assert job.key is not None
        job.place = Place.BEHIND_KEY
        heappush(self._lines[job.key], _turn(job))

    def _next_in_line(self, key: _Key | None) -> _Job | None:
        line = self._lines[key] if key else []
        while line:
            job = self._jobs.get(line[0][1])
            if job and job.place is Place.BEHIND_KEY:
                return job
            heappop(line)
        return None

    def _seat_next(self, key: _Key) -> None:
        job = self._next_in_line(key)
        if job is None:
            self._heads.pop(key, None)
            self._lines.pop(key, None)
        else:
            self._become_head(job, job.due_ms)
            self._changed.notify_all()

    def _grant(self, job: _Job, consumer: str) -> Delivery:
        self._tokens += 1
        job.deliveries += 1
        job.lease = Lease(b"%d" % self._tokens, consumer, job.deliveries)
        job.place, job.renewed_ms = Place.HANDED_OFF, self._now()
        self._held[job.lane].add(job.reference)
        counts = (job.attempts, job.crashes, job.releases)
        return Delivery(job.reference, job.lane, job.lease, job.ready_ms, job.payload, *counts)

    def _holding(self, lane: str) -> list[_Job]:
        return [self._jobs[reference] for reference in self._held[lane]]

    def _held_as(self, delivery: Delivery) -> _Job | None:
        job = self._jobs.get(delivery.reference)
        return job if job and job.lease == delivery.lease else None

    def _let_go(self, job: _Job) -> None:
        job.lease, job.deliveries = None, 0
        self._held[job.lane].discard(job.reference)

    def _end(self, delivery: Delivery) -> bool:
        job = self._held_as(delivery)
        if job is None:
            return False
        self._let_go(job)
        self._forget(job)
        return True

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.reference]
        self._mark(Reference.unpack(job.reference), known=False)
        job.place = Place.NOWHERE
        if job.key and self._heads.get(job.key) is job:
            self._seat_next(job.key)


def _turn(job: _Job) -> tuple[int, bytes]:
    return job.rank, job.reference
