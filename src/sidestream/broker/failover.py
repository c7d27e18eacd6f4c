"""Use the primary broker (Redis) while it answers, and the fallback (PostgreSQL) otherwise.

Each delivery belongs to the broker that handed it out; leases of the fallback start with
:data:`~sidestream.broker.protocol.FALLBACK_PREFIX`. Only claims move to the fallback. Every other call that concerns
the primary raises :class:`~sidestream.errors.BrokerUnavailable` at once while it is away, so that each thread waits for
a frozen Redis at most once per outage. :meth:`FailoverBroker.probe` brings the primary back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from sidestream.broker.postgres.broker import PostgresBroker
from sidestream.broker.protocol import (
    FALLBACK_PREFIX,
    Broker,
    Delivery,
    Explanation,
    Generation,
    Lease,
    Place,
    Publication,
    Reclaimed,
    from_fallback,
)
from sidestream.clock import Clock
from sidestream.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnsuitable, StaleGeneration
from sidestream.job.outcome import Release
from sidestream.job.reference import NO_TAG8
from sidestream.job.rules import Rules

log = logging.getLogger(__name__)

T = TypeVar("T")

STABLE_AFTER = 10.0
"""Seconds that the primary must be back before its next failure counts as a new outage."""
PROBE_EVERY = 0.5
"""Seconds between two probes of a primary that is away."""
TWICE_DELAY_MS = 1000
"""Milliseconds by which a job is delayed if this process already holds it under a lease of the other broker."""


def owners_grace(renew_interval: float) -> float:
    """Return the seconds within which every live worker notices that its broker is back.

    A worker pauses for at most ``renew_interval``, probes every :data:`PROBE_EVERY` and renews at once; the same again
    covers the calls. Until then, a lease that expired during the outage does not prove that its worker died.
    """
    return 2 * (renew_interval + PROBE_EVERY)


class Outage(NamedTuple):
    """Since when and why the primary is not used."""

    since: datetime
    reason: str


class FailoverBroker:
    """Claims from ``primary`` while it answers and from ``fallback`` otherwise.

    BrokerUnavailable from any call of the primary marks it away; so do BrokerFull and BrokerUnsuitable from a claim.

    Concurrency limits count the jobs of both brokers. The fallback sees what is held from the primary. A primary that
    is back hands out nothing until its caller has reasserted what it holds (:meth:`reassert`); the jobs of the fallback
    then continue under leases of the primary.
    """

    def __init__(
        self,
        primary: Broker,
        fallback: PostgresBroker | None,
        clock: Clock,
        *,
        probe_every: float = PROBE_EVERY,
        longest_pause: float = 3.0,
    ) -> None:
        """Start with the primary in use.

        Args:
            primary: The broker for claims while it is healthy.
            fallback: The broker for claims while the primary is away; None: there are none then.
            clock: Of this host.
            probe_every: Seconds between two probes while the primary is away.
            longest_pause: Most seconds before the first probe of a primary that answers probes and then refuses claims;
                see :func:`owners_grace`.
        """
        self.capabilities = primary.capabilities
        self._primary = primary
        self._fallback = fallback
        self._clock = clock
        self._probe_every = probe_every
        self._longest_pause = max(longest_pause, probe_every)
        self._lock = threading.Lock()
        self._outage: Outage | None = None
        #: Counts changes between away and back: an answer from before the last change says nothing about now.
        self._turn = 0
        self._back_at = float("-inf")
        self._pause = probe_every
        self._probe_at = 0.0
        self._probing = False
        #: What was handed out and has not ended, by reference: no job is held under leases of both brokers at once.
        self._from_primary: dict[bytes, Delivery] = {}
        self._from_fallback: dict[bytes, Delivery] = {}
        #: By lease: references of jobs that ended under leases of the primary while it was away.
        self._unreported: dict[Lease, bytes] = {}
        #: Whether the jobs of the fallback must be reasserted in the primary before it may hand out more.
        self._must_reassert = False
        if fallback is not None:
            fallback.count_others(self._held_from_primary)

    @property
    def away_since(self) -> datetime | None:
        """When the primary went away (UTC); None while it is in use."""
        outage = self._outage
        return outage.since if outage is not None else None

    def probe(self) -> bool:
        """Probe a primary that is away, if it is time to; return whether it is in use.

        One thread calls this about every ``probe_every`` seconds and may wait one socket timeout.
        """
        with self._lock:
            if self._outage is None:
                return True
            if self._probing or self._clock.monotonic() < self._probe_at:
                return False
            self._probing = True
        try:
            # Unlike generation(), this call names the known generation: if Redis was emptied meanwhile, the next claim
            # still raises StaleGeneration, and the worker reasserts what it holds.
            self._primary.published(NO_TAG8, 0)
        except StaleGeneration:
            self._mark_back()
        except BrokerError:
            with self._lock:
                self._probe_at = self._clock.monotonic() + self._probe_every
        else:
            self._mark_back()
        finally:
            self._probing = False
        return self._outage is None

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        return self._ask(lambda: self._primary.generation(databases))

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        return self._ask(lambda: self._primary.begin_generation(databases))

    def mark_synced(self, database: bytes) -> None:
        self._ask(lambda: self._primary.mark_synced(database))

    def configure(self, database: bytes, rules: Rules) -> bool:
        """Configure both; the fallback also reads the table of rules and follows the newest."""
        if self._fallback is not None:
            self._fallback.configure(database, rules)
        return self._ask(lambda: self._primary.configure(database, rules))

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """Announce to both: the fallback hands out no action that the worker does not know."""
        if self._fallback is not None:
            self._fallback.announce(worker, lanes, info, ttl_ms, actions)
        self._ask(lambda: self._primary.announce(worker, lanes, info, ttl_ms, actions))

    def withdraw(self, worker: str) -> None:
        self._ask(lambda: self._primary.withdraw(worker))

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """Publish to the primary only: the fallback reads the rows themselves."""
        return self._ask(lambda: self._primary.publish(jobs, force=force))

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """Claim from the broker in use; without a fallback, raise the primary's error.

        Raises:
            StaleGeneration: Also when the primary is back and does not know yet what the fallback handed out.
        """
        turn = self._turn
        if self._outage is None:
            if self._must_reassert and self._from_fallback:
                raise StaleGeneration("The broker is back; reassert the jobs that were claimed from PostgreSQL.")
            try:
                found = self._primary.claim(worker, lanes, free=free, prefetch=prefetch, wait_ms=wait_ms)
            except (BrokerUnavailable, BrokerFull, BrokerUnsuitable) as error:
                self._mark_away(error, turn)
                if self._fallback is None:
                    raise
            else:
                return self._take_in(found, self._from_primary, self._from_fallback)
        if self._fallback is None:
            raise self._absent()
        found = self._fallback.claim(worker, lanes, free=free, prefetch=prefetch, wait_ms=wait_ms)
        self._must_reassert = self._must_reassert or bool(found)
        return self._take_in(found, self._from_fallback, self._from_primary)

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """Renew each lease with its broker, those of the fallback first."""
        theirs = [lease for lease in leases if lease.entry.startswith(FALLBACK_PREFIX)]
        ours = leases if not theirs else [lease for lease in leases if not lease.entry.startswith(FALLBACK_PREFIX)]
        lost: list[Lease] = []
        if theirs and self._fallback is not None:
            lost += self._fallback.renew(worker, theirs)
            self._must_reassert = True  # the primary refused to take them over; now it may accept
        if ours:
            lost += self._ask(lambda: self._primary.renew(worker, ours))
        if lost:
            gone = set(lost)
            with self._lock:
                for held in (self._from_primary, self._from_fallback):
                    for reference in [key for key, one in held.items() if one.lease in gone]:
                        del held[reference]
        return lost

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        """Settle each delivery with its broker, those of the fallback first."""
        theirs = [delivery for delivery in deliveries if from_fallback(delivery)]
        ours = deliveries if not theirs else [delivery for delivery in deliveries if not from_fallback(delivery)]
        lost: list[Lease] = []
        if theirs and self._fallback is not None:
            lost += self._fallback.settle(theirs)
            self._ended(theirs)
        if ours:
            try:
                lost += self._ask(lambda: self._primary.settle(ours))
            except (BrokerUnavailable, BrokerFull, BrokerUnsuitable):
                self._ended_unreported(ours)
                raise
            self._ended(ours)
        return lost

    def release(self, delivery: Delivery, release: Release) -> int:
        """Ask the broker that handed it out."""
        return self._end(delivery, lambda broker: broker.release(delivery, release))

    def fail(self, delivery: Delivery, error: str) -> bool:
        """Ask the broker that handed it out."""
        return self._end(delivery, lambda broker: broker.fail(delivery, error))

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        """Ask the primary: leases of the fallback are row locks, which end with their session."""
        return self._ask(lambda: self._primary.reclaim(worker, lanes, lease_ms=lease_ms, grace_ms=grace_ms))

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Restate all leases in the primary, also those of the fallback unless it refuses them.

        A job that ended under a lease of the primary, and was claimed from the fallback since, is reasserted after the
        primary has received that end.
        """
        with self._lock:
            unreported = set(self._unreported.values())
        theirs = [delivery for delivery in deliveries if from_fallback(delivery)]
        ours = [d for d in deliveries if not from_fallback(d) or d.reference not in unreported]
        self._must_reassert = False
        again = self._ask(lambda: self._primary.reassert(worker, ours))
        taken = {delivery.reference for delivery in again}
        with self._lock:
            self._from_primary.update((delivery.reference, delivery) for delivery in again)
        taken_over = [delivery for delivery in theirs if delivery.reference in taken]
        if taken_over and self._fallback is not None:
            self._fallback.settle(taken_over)
            self._ended(taken_over)
        return again + [delivery for delivery in theirs if delivery.reference not in taken]

    def published(self, database: bytes, chunk: int) -> bytes:
        return self._ask(lambda: self._primary.published(database, chunk))

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        return self._ask(lambda: self._primary.locate(jobs))

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        return self._ask(lambda: self._primary.delayed_until(jobs))

    def explain(self, job: Publication) -> Explanation:
        """Ask the primary, or the fallback while the primary is away."""
        if self._outage is not None and self._fallback is not None:
            return self._fallback.explain(job)
        return self._ask(lambda: self._primary.explain(job))

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """Ask the primary: the fallback reads the priorities of the rows."""
        return self._ask(lambda: self._primary.reprioritize(job, priority))

    def discard(self, job: Publication) -> bool:
        return self._ask(lambda: self._primary.discard(job))

    def close(self) -> None:
        """Close both."""
        self._primary.close()
        if self._fallback is not None:
            self._fallback.close()

    def _ask(self, call: Callable[[], T]) -> T:
        """Call the primary, unless it is away."""
        turn = self._turn
        if self._outage is not None:
            raise self._absent()
        try:
            return call()
        except BrokerUnavailable as error:
            self._mark_away(error, turn)
            raise

    def _ask_holder(self, delivery: Delivery, call: Callable[[Broker], T]) -> T:
        if self._fallback is not None and from_fallback(delivery):
            return call(self._fallback)
        return self._ask(lambda: call(self._primary))

    def _end(self, delivery: Delivery, call: Callable[[Broker], T]) -> T:
        try:
            answer = self._ask_holder(delivery, call)
        except (BrokerUnavailable, BrokerFull, BrokerUnsuitable):
            if not from_fallback(delivery):
                self._ended_unreported([delivery])
            raise
        self._ended([delivery])
        return answer

    def _absent(self) -> BrokerUnavailable:
        outage = self._outage
        if outage is None:  # it came back just now: the caller's next attempt reaches it
            return BrokerUnavailable("The broker was away until this moment; try again.")
        return BrokerUnavailable(f"The broker is away since {outage.since:%H:%M:%S} UTC: {outage.reason}")

    def _take_in(
        self, found: list[Delivery], held: dict[bytes, Delivery], others: dict[bytes, Delivery]
    ) -> list[Delivery]:
        """Record what we hold; release what we already hold under a lease of the other broker."""
        twice: list[Delivery] = []
        with self._lock:
            if others:
                twice = [delivery for delivery in found if delivery.reference in others]
                found = [delivery for delivery in found if delivery.reference not in others] if twice else found
            held.update((delivery.reference, delivery) for delivery in found)
        for delivery in twice:
            self._give_back(delivery)
        return found

    def _give_back(self, delivery: Delivery) -> None:
        try:
            self._ask_holder(
                delivery, lambda broker: broker.release(delivery, Release(delay_ms=TWICE_DELAY_MS, count=False))
            )
        except BrokerError as error:
            # Nothing runs under this lease, so it may as well expire.
            log.info("A job held twice keeps its lease until it runs out: %s", error, extra={"action": "twice_kept"})

    def _ended(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for delivery in deliveries:
                held = self._from_fallback if from_fallback(delivery) else self._from_primary
                held.pop(delivery.reference, None)
                if self._unreported.pop(delivery.lease, None) is not None:
                    self._must_reassert = True

    def _ended_unreported(self, deliveries: Sequence[Delivery]) -> None:
        """Record ends that the primary must receive later; the rows have the outcomes.

        The jobs no longer run here, so they hold no slots, and the fallback may hand them out again.
        """
        with self._lock:
            for delivery in deliveries:
                held = self._from_primary.get(delivery.reference)
                if held is not None and held.lease == delivery.lease:
                    del self._from_primary[delivery.reference]
                    self._unreported[delivery.lease] = delivery.reference

    def _held_from_primary(self) -> list[Delivery]:
        with self._lock:
            return list(self._from_primary.values())

    def _mark_away(self, error: BrokerError, turn: int) -> None:
        with self._lock:
            if self._outage is not None or turn != self._turn:
                return
            now = self._clock.monotonic()
            # A primary that answers probes but refuses claims would be tried twice a second: pause longer each time.
            flapping = now - self._back_at < STABLE_AFTER
            self._pause = min(self._pause * 2, self._longest_pause) if flapping else self._probe_every
            self._probe_at = now + self._pause
            self._turn += 1
            self._outage = Outage(self._clock.now(), str(error))
        meanwhile = (
            "jobs are taken from PostgreSQL meanwhile" if self._fallback is not None else "no job is taken meanwhile"
        )
        log.warning("The broker is away, %s: %s", meanwhile, error, extra={"action": "broker_away"})

    def _mark_back(self) -> None:
        with self._lock:
            outage, self._outage = self._outage, None
            self._turn += 1
            self._must_reassert = True
            self._back_at = self._clock.monotonic()
        if outage is not None:
            seconds = (self._clock.now() - outage.since).total_seconds()
            log.warning("The broker is back after %.1f s.", seconds, extra={"action": "broker_back"})
