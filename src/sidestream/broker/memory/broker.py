"""Implement the broker contract in memory, under one lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sidestream.broker.memory.contents import Job
from sidestream.broker.memory.parking import BATCH
from sidestream.broker.memory.server import Life, MemoryServer
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
from sidestream.errors import BrokerUnavailable, StaleGeneration
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.job.rules import Rules


class MemoryBroker:
    """A broker in memory, whose leases end with the process."""

    capabilities = frozenset(Capability) - {Capability.LEASES, Capability.SHARED}

    def __init__(
        self, *, lease_ms: int = 15_000, clock_ms: Callable[[], int] | None = None, server: MemoryServer | None = None
    ) -> None:
        """Begin empty, or share the contents of ``server``.

        Args:
            lease_ms: How long a lease lasts; after a pause of half of it, the gap rule applies.
            clock_ms: Unix milliseconds instead of the machine's clock.
            server: Contents to share with other brokers, with their own clock.
        """
        self._server = server or MemoryServer(clock_ms)
        self._now = self._server.now
        self._half_lease = lease_ms // 2
        self._number = 0
        self._closed = False

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        self._check_open()
        contents = self._server.life.contents
        self._number = contents.number
        synced = frozenset(database.hex() for database in databases) & contents.synced
        return Generation(self._number, "memory", synced)

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        self._check_open()
        with self._server.changed:
            contents = self._server.life.contents
            contents.number = contents.number or max(1, time.time_ns())
        return self.generation(databases)

    def mark_synced(self, database: bytes) -> None:
        with self._locked() as life:
            life.contents.synced.add(database.hex())
            life.parking.check_all(database.hex())

    def configure(self, database: bytes, rules: Rules) -> bool:
        with self._locked() as life:
            return life.parking.configure(database.hex(), rules)

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """See :meth:`Broker.announce`, of which only the actions matter in one process."""
        with self._locked() as life:
            if actions is None:
                life.contents.worker_actions.pop(worker, None)
            else:
                life.contents.worker_actions[worker] = actions

    def withdraw(self, worker: str) -> None:
        with self._locked() as life:
            life.contents.worker_actions.pop(worker, None)

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        with self._locked() as life:
            return sum(self._publish(life, job, force) for job in jobs)

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        deadline = time.monotonic() + wait_ms / 1000
        with self._server.changed:
            while True:
                life = self._check()
                life.contents.beat(self._half_lease)
                found = self._take(life, worker, lanes, free, prefetch)
                rest = deadline - time.monotonic()
                if found or rest <= 0 or not free:
                    return found
                self._server.changed.wait(min(rest, self._until_due(life, lanes)))

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        with self._locked() as life:
            life.contents.beat(self._half_lease)
            held = {job.lease: job for lane in life.contents.leased for job in _leased_in(life, lane)}
            lost = []
            for lease in leases:
                if lease.worker == worker and (job := held.get(lease)):
                    job.renewed_ms = self._now()
                else:
                    lost.append(lease)
            return lost

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        with self._locked() as life:
            ended, lost = [], []
            for delivery in deliveries:
                if job := _held_as(life, delivery):
                    _end_lease(life, job)
                    ended.append(job)
                else:
                    lost.append(delivery.lease)
            for job in ended:
                _forget(life, job)
            return lost

    def release(self, delivery: Delivery, release: Release) -> int:
        with self._locked() as life:
            job = _held_as(life, delivery)
            if job is None:
                return -1
            if release.charge_attempt or release.charge_crash:
                job.releases = 0
                if job.payload is not None:
                    job.attempts += 1
                    job.crashes += release.charge_crash
            else:
                job.releases += release.count
            delay_ms, blocked = release.delay_ms, release.blocked_by is not None
            if delay_ms is None or (blocked and not delay_ms):
                delay_ms = min(30_000, 50 * 2 ** min(max(job.releases - 1, 0), 10))
            until = self._now() + delay_ms if delay_ms else 0
            job.due_ms = 0 if blocked else until
            _end_lease(life, job)
            if release.unstarted and until:
                life.contents.place_at(job, until)
                life.keyed.pass_on(job)
            else:
                life.keyed.requeue(job, until)
            return job.releases

    def fail(self, delivery: Delivery, error: str) -> bool:
        with self._locked() as life:
            job = _held_as(life, delivery)
            if job is None:
                return False
            if job.payload is not None:
                life.contents.failed[job.reference] = (job, error)
            _end_lease(life, job)
            _forget(life, job)
            return True

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        with self._locked() as life:
            life.contents.beat(self._half_lease)
            now, gap = self._now(), life.contents.gap_ms
            if gap and now - gap < grace_ms:
                return Reclaimed([], more=False)
            late = [job for lane in lanes for job in _leased_in(life, lane) if now - job.renewed_ms >= lease_ms]
            late.sort(key=lambda job: job.renewed_ms)
            taken = []
            for job in late[:BATCH]:
                loser = job.lease.worker if job.lease else ""
                taken.append((_grant(life, job, worker), loser))
            return Reclaimed(taken, more=len(late) > BATCH)

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        with self._locked() as life:
            return [ours for one in deliveries if (ours := self._reassert(life, worker, one))]

    def published(self, database: bytes, chunk: int) -> bytes:
        with self._locked() as life:
            return life.contents.published(database, chunk)

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        with self._locked() as life:
            found = (life.contents.jobs.get(job.reference) for job in jobs)
            return [job.place if job else Place.NOWHERE for job in found]

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        found = [self.explain(job) for job in jobs]
        return [one.until_ms if one.place is Place.DELAYED else 0 for one in found]

    def explain(self, job: Publication) -> Explanation:
        with self._locked() as life:
            found = life.contents.jobs.get(job.reference)
            if found is None:
                return Explanation(Place.NOWHERE)
            if found.place is Place.LEASED:
                return Explanation(found.place, worker=found.lease.worker if found.lease else "")
            if found.place is Place.BEHIND_KEY:
                head = life.keyed.head(found)
                return Explanation(found.place, holders=(head.reference,) if head else ())
            if found.place is Place.DELAYED:
                until = life.contents.delayed[found.lane, found.priority].score(found.reference)
                return Explanation(found.place, until_ms=int(until or 0))
            return life.parking.explain(found)

    def reprioritize(self, job: Publication, priority: int) -> bool:
        with self._locked() as life:
            found = life.contents.jobs.get(job.reference)
            if found is None or found.place is Place.LEASED:
                return False
            life.contents.reprioritize(found, priority)
            return True

    def discard(self, job: Publication) -> bool:
        with self._locked() as life:
            found = life.contents.jobs.get(job.reference)
            if found is None or found.place is Place.LEASED:
                return False
            life.contents.unplace(found)
            _forget(life, found)
            return True

    def close(self) -> None:
        with self._server.changed:
            self._closed = True
            self._server.changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The memory broker was closed; create a new one.")

    def _check(self) -> Life:
        self._check_open()
        life = self._server.life
        if not self._number or life.contents.number != self._number:
            raise StaleGeneration("The memory broker has another generation, or none; call begin_generation().")
        return life

    @contextmanager
    def _locked(self) -> Iterator[Life]:
        with self._server.changed:
            yield self._check()
            self._server.changed.notify_all()

    def _publish(self, life: Life, job: Publication, force: bool) -> bool:
        named, jobs = Reference.unpack(job.reference), life.contents.jobs
        if named.direct and (job.reference in jobs or job.reference in life.contents.failed):
            return False
        releases = 0
        if not named.direct and life.contents.mark_published(named, published=True):
            found = jobs.get(job.reference)
            if found is None:
                if not force and not job.edited and not job.withdrawn:
                    return False
            elif not (job.edited or job.withdrawn) or found.place is Place.LEASED:
                return False
            else:
                releases = found.releases if job.edited else 0
                life.contents.unplace(found)
                _forget(life, found)
                life.contents.mark_published(named, published=True)
        if job.withdrawn:
            life.contents.mark_published(named, published=False)
            return False
        now = self._now()
        one = Job(job.reference, named, job.lane, job.priority, job.due_ms or now, job.due_ms, job.payload)
        one.releases = releases
        jobs[job.reference] = one
        if job.due_ms > now and not (one.key and job.attempted):
            life.contents.place_at(one, job.due_ms)
        else:
            life.keyed.enqueue(one, job.due_ms)
        return True

    def _take(self, life: Life, worker: str, lanes: Sequence[str], free: int, prefetch: int) -> list[Delivery]:
        known = life.contents.worker_actions.get(worker)
        life.parking.run_timers()
        for lane in lanes:
            for job in life.serving.promote(lane):
                job.due_ms = 0
                life.keyed.enqueue(job, 0)
        life.parking.unpark_routed(lanes, known)
        return [_grant(life, job, worker) for job in life.serving.pick(lanes, free, prefetch, known)]

    def _until_due(self, life: Life, lanes: Sequence[str]) -> float:
        """Return the seconds after which a claim may find a job by time alone."""
        timer = life.contents.timers.first()
        times = [due for lane in lanes if (due := life.contents.due_ms(lane)) is not None]
        times += [int(timer[0])] if timer else []
        times += [life.serving.opens_ms] if life.serving.opens_ms else []
        return max(0.001, (min(times) - self._now()) / 1000) if times else threading.TIMEOUT_MAX

    def _reassert(self, life: Life, worker: str, held: Delivery) -> Delivery | None:
        found = life.contents.jobs.get(held.reference)
        named = Reference.unpack(held.reference)
        if found and found.lease == held.lease:
            return held  # this lease is still valid
        if found and (named.direct or found.place is Place.LEASED):
            return None  # published again, or leased by another worker
        if found:
            life.contents.unplace(found)
            life.keyed.remove_behind(found)
        job = found or Job(held.reference, named, held.lane, held.priority, held.ready_ms, 0, held.payload)
        job.ready_ms, job.due_ms, job.priority = held.ready_ms, 0, held.priority
        job.attempts, job.crashes, job.releases = held.attempts, held.crashes, held.releases
        life.contents.jobs[held.reference] = job
        life.contents.mark_published(named, published=True)
        life.parking.hold(job)
        delivery = _grant(life, job, worker)
        life.keyed.run_as_head(job)
        return delivery


def _grant(life: Life, job: Job, worker: str) -> Delivery:
    life.contents.tokens += 1
    job.deliveries += 1
    job.lease = Lease(b"%d" % life.contents.tokens, worker, job.deliveries)
    job.place, job.renewed_ms = Place.LEASED, life.contents.now()
    life.contents.leased[job.lane].add(job.reference)
    counts = (job.attempts, job.crashes, job.releases)
    return Delivery(job.reference, job.lane, job.lease, job.ready_ms, job.payload, *counts, job.priority)


def _leased_in(life: Life, lane: str) -> list[Job]:
    return [life.contents.jobs[reference] for reference in life.contents.leased[lane]]


def _held_as(life: Life, delivery: Delivery) -> Job | None:
    job = life.contents.jobs.get(delivery.reference)
    return job if job and job.lease == delivery.lease else None


def _end_lease(life: Life, job: Job) -> None:
    job.lease, job.deliveries = None, 0
    job.place = Place.NOWHERE
    life.contents.leased[job.lane].discard(job.reference)
    life.parking.free(job)


def _forget(life: Life, job: Job) -> None:
    del life.contents.jobs[job.reference]
    life.contents.mark_published(job.named, published=False)
    job.place = Place.NOWHERE
    life.keyed.pass_on(job)
