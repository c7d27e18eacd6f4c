"""Two brokers as one: the primary (Redis) while it answers, the fallback (PostgreSQL) while it does not (design D13).

A delivery belongs to the broker that gave it: leases of the fallback are recognised by
:data:`~sidestream.broker.protocol.FALLBACK_PREFIX`. Only
claims move over to the fallback; everything else that concerns the primary raises
:class:`~sidestream.errors.BrokerUnavailable` at once while it is away, so that each thread waits for a frozen Redis at
most once an outage. :meth:`FailoverBroker.probe` brings the primary back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar

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
"""Seconds that the primary must have been back for its next outage to count as a new one."""
PROBE_EVERY = 0.5
"""Seconds between two looks at a primary that is away."""
TWICE_DELAY_MS = 1000
"""How long a job that we already hold under the other broker's lease stays away from us."""


def owners_grace(renew_interval: float) -> float:
    """Return the seconds in which every living worker finds its broker back.

    It pauses for ``renew_interval`` at most, looks each :data:`PROBE_EVERY` and renews at once; the same again is for
    the call.
    Until then, a lease that ran out while nobody could renew is nobody's proof of a death.
    """
    return 2 * (renew_interval + PROBE_EVERY)


class Outage(NamedTuple):
    """Why, and since when, the primary is not used."""

    since: datetime
    reason: str


class Fallback(Broker, Protocol):
    """A broker that hands out jobs while the primary is away."""

    def count_others(self, held: Callable[[], Sequence[Delivery]]) -> None:
        """Let concurrency limits count what this process holds from the primary (``held``), and hand none of it out."""
        ...


class FailoverBroker:
    """Claims from ``primary`` while it is healthy and from ``fallback`` while not. See :class:`Broker` for each method.

    BrokerUnavailable out of any call of the primary marks it away, BrokerFull and BrokerUnsuitable out of a claim.

    Concurrency limits count the jobs of both. The fallback is shown what is held from the primary. The primary, once it
    is back, hands out nothing until its caller has stated what it holds (:meth:`reassert`): the jobs of the fallback
    then continue under leases of the primary.
    """

    def __init__(
        self,
        primary: Broker,
        fallback: Fallback | None,
        clock: Clock,
        *,
        probe_every: float = PROBE_EVERY,
        longest_pause: float = 3.0,
    ) -> None:
        """Start with the primary in use.

        Args:
            primary: The one that claims are taken from while it is healthy.
            fallback: The one that they are taken from while it is not; None: then none are.
            clock: Of this host.
            probe_every: Seconds between two probes while it is away.
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
        #: Counts comings and goings: an answer that began before the last one tells nothing about now.
        self._turn = 0
        self._back_at = float("-inf")
        self._pause = probe_every
        self._probe_at = 0.0
        self._probing = False
        #: What was handed out and has not ended, by reference: no job is held under both brokers' leases at once.
        self._from_primary: dict[bytes, Delivery] = {}
        self._from_fallback: dict[bytes, Delivery] = {}
        #: Ended under leases of the primary, which could not be told yet: their references, by lease.
        self._untold: dict[Lease, bytes] = {}
        #: The primary has to be told what the fallback gave before it may hand out more.
        self._unstated = False
        if fallback is not None:
            fallback.count_others(self._held_from_primary)

    @property
    def away_since(self) -> datetime | None:
        """When the primary went away (UTC); None while it is in use."""
        outage = self._outage
        return outage.since if outage is not None else None

    @property
    def away_because(self) -> str | None:
        """Why the primary is away, in one sentence; None while it is in use."""
        outage = self._outage
        return outage.reason if outage is not None else None

    def probe(self) -> bool:
        """Ask an absent primary whether it is back, if it is time to; return whether it is in use.

        Called every ``probe_every`` seconds or so by one thread that may wait one socket time-out for it.
        """
        with self._lock:
            if self._outage is None:
                return True
            if self._probing or self._clock.monotonic() < self._probe_at:
                return False
            self._probing = True
        try:
            # Names the generation that we know, unlike generation(): if Redis was emptied meanwhile, the next claim is
            # still answered "moved", and the worker states anew what it holds.
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
        """Of the primary."""
        return self._ask(lambda: self._primary.generation(databases))

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """In the primary."""
        return self._ask(lambda: self._primary.begin_generation(databases))

    def mark_synced(self, database: bytes) -> None:
        """In the primary."""
        self._ask(lambda: self._primary.mark_synced(database))

    def configure(self, database: bytes, rules: Rules) -> bool:
        """In both: the fallback reads the rows' own rules as well, and the newest govern it."""
        if self._fallback is not None:
            self._fallback.configure(database, rules)
        return self._ask(lambda: self._primary.configure(database, rules))

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """To both: the fallback hands out no action that the worker does not know."""
        if self._fallback is not None:
            self._fallback.announce(worker, lanes, info, ttl_ms, actions)
        self._ask(lambda: self._primary.announce(worker, lanes, info, ttl_ms, actions))

    def withdraw(self, worker: str) -> None:
        """From the primary."""
        self._ask(lambda: self._primary.withdraw(worker))

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """To the primary only: the fallback reads the rows themselves."""
        return self._ask(lambda: self._primary.publish(jobs, force=force))

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """From the primary if it is in use, else from the fallback; without one the primary's error comes out.

        Raises:
            StaleGeneration: Also when the primary is back and does not know yet what the fallback gave.
        """
        turn = self._turn
        if self._outage is None:
            if self._unstated and self._from_fallback:
                raise StaleGeneration("The broker is back; it has to be told which jobs were taken from PostgreSQL.")
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
        self._unstated = self._unstated or bool(found)
        return self._take_in(found, self._from_fallback, self._from_primary)

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """With the giver of each; the fallback's are renewed even when the primary then raises."""
        theirs = [lease for lease in leases if lease.entry.startswith(FALLBACK_PREFIX)]
        ours = leases if not theirs else [lease for lease in leases if not lease.entry.startswith(FALLBACK_PREFIX)]
        lost: list[Lease] = []
        if theirs and self._fallback is not None:
            lost += self._fallback.renew(worker, theirs)
            self._unstated = True  # the primary refused to take them over; by now it may
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
        """With the giver of each; the fallback's are settled even when the primary then raises."""
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
                self._ended_untold(ours)
                raise
            self._ended(ours)
        return lost

    def release(self, delivery: Delivery, release: Release) -> int:
        """With the giver."""
        return self._end(delivery, lambda broker: broker.release(delivery, release))

    def fail(self, delivery: Delivery, error: str) -> bool:
        """With the giver."""
        return self._end(delivery, lambda broker: broker.fail(delivery, error))

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        """From the primary: leases of the fallback are row locks, which end with their session."""
        return self._ask(lambda: self._primary.reclaim(worker, lanes, lease_ms=lease_ms, grace_ms=grace_ms))

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """State all to the primary: what the fallback gave is the primary's from then on, unless it refuses it.

        A job that ended under a lease of the primary, and was taken from the fallback since, is stated once the primary
        was told of that end.
        """
        with self._lock:
            untold = set(self._untold.values())
        theirs = [delivery for delivery in deliveries if from_fallback(delivery)]
        ours = [d for d in deliveries if not from_fallback(d) or d.reference not in untold]
        self._unstated = False
        again = self._ask(lambda: self._primary.reassert(worker, ours))
        taken = {delivery.reference for delivery in again}
        with self._lock:
            self._from_primary.update((delivery.reference, delivery) for delivery in again)
        moved = [delivery for delivery in theirs if delivery.reference in taken]
        if moved and self._fallback is not None:
            self._fallback.settle(moved)
            self._ended(moved)
        return again + [delivery for delivery in theirs if delivery.reference not in taken]

    def published(self, database: bytes, chunk: int) -> bytes:
        """Of the primary."""
        return self._ask(lambda: self._primary.published(database, chunk))

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """In the primary."""
        return self._ask(lambda: self._primary.locate(jobs))

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        """In the primary."""
        return self._ask(lambda: self._primary.delayed_until(jobs))

    def explain(self, job: Publication) -> Explanation:
        """In the primary, or in the fallback while it is away."""
        if self._outage is not None and self._fallback is not None:
            return self._fallback.explain(job)
        return self._ask(lambda: self._primary.explain(job))

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """In the primary: the fallback reads the rows' own priorities."""
        return self._ask(lambda: self._primary.reprioritize(job, priority))

    def discard(self, job: Publication) -> bool:
        """From the primary."""
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

    def _giver(self, delivery: Delivery, call: Callable[[Broker], T]) -> T:
        if self._fallback is not None and from_fallback(delivery):
            return call(self._fallback)
        return self._ask(lambda: call(self._primary))

    def _end(self, delivery: Delivery, call: Callable[[Broker], T]) -> T:
        try:
            answer = self._giver(delivery, call)
        except (BrokerUnavailable, BrokerFull, BrokerUnsuitable):
            if not from_fallback(delivery):
                self._ended_untold([delivery])
            raise
        self._ended([delivery])
        return answer

    def _absent(self) -> BrokerUnavailable:
        outage = self._outage
        if outage is None:  # it came back this moment: the caller's next try reaches it
            return BrokerUnavailable("The broker was away until this moment; try again.")
        return BrokerUnavailable(f"The broker is away since {outage.since:%H:%M:%S} UTC: {outage.reason}")

    def _take_in(
        self, found: list[Delivery], held: dict[bytes, Delivery], others: dict[bytes, Delivery]
    ) -> list[Delivery]:
        """Note what we hold; give back what we hold already under the other broker's lease."""
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
            self._giver(
                delivery, lambda broker: broker.release(delivery, Release(delay_ms=TWICE_DELAY_MS, count=False))
            )
        except BrokerError as error:
            # Nobody works on it under this lease, so letting the lease run out is as good.
            log.info("A job held twice keeps its lease until it runs out: %s", error, extra={"action": "twice_kept"})

    def _ended(self, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            for delivery in deliveries:
                held = self._from_fallback if from_fallback(delivery) else self._from_primary
                held.pop(delivery.reference, None)
                if self._untold.pop(delivery.lease, None) is not None:
                    self._unstated = True

    def _ended_untold(self, deliveries: Sequence[Delivery]) -> None:
        """Note ends that the primary has to be told later; their rows say what became of them.

        Nobody here works on them, so they hold no slot of a limit, and the fallback may hand them out again.
        """
        with self._lock:
            for delivery in deliveries:
                held = self._from_primary.get(delivery.reference)
                if held is not None and held.lease == delivery.lease:
                    del self._from_primary[delivery.reference]
                    self._untold[delivery.lease] = delivery.reference

    def _held_from_primary(self) -> list[Delivery]:
        with self._lock:
            return list(self._from_primary.values())

    def _mark_away(self, error: BrokerError, turn: int) -> None:
        with self._lock:
            if self._outage is not None or turn != self._turn:
                return
            now = self._clock.monotonic()
            # A primary that answers probes and refuses claims would be tried twice a second: pause longer each time.
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
            self._unstated = True
            self._back_at = self._clock.monotonic()
        if outage is not None:
            seconds = (self._clock.now() - outage.since).total_seconds()
            log.warning("The broker is back after %.1f s.", seconds, extra={"action": "broker_back"})
