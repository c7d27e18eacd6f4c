"""Take over the deliveries of dead workers.

For each delivery whose lease ran out:

1. find its owner: this worker (the answer was lost, or it was frozen), another announced worker, or a dead one;
2. end the sessions that a dead worker left in PostgreSQL, or those in which another one ran it, so that rows are free;
3. charge the row of a job that ran there: a crash when it ran alone, a suspicion when it may have been the cause;
4. only then release the delivery, or settle it when its row has ended.

A job that was claimed but did not run is not charged. While PostgreSQL is away, deliveries of rows stay here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from sidestream.broker.protocol import Broker, Delivery
from sidestream.clock import Clock
from sidestream.crashpoints import crash_point
from sidestream.errors import StaleGeneration, StoreError, WireError
from sidestream.job.job import MAX_CRASHES
from sidestream.job.observer import JobFailure
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.maintenance.task import check_times
from sidestream.maintenance.verdicts import Taken, Verdict, charge_rows, end_runs, give_back, without_row

log = logging.getLogger(__name__)

MOST_PAGES = 10
"""Most pages (of up to 100 deliveries) that one step takes over."""


class LeaseReclaimer:
    """Releases or ends deliveries whose leases ran out.

    Settings: ``lease = "15s"``, ``renew_interval = "3s"``.
    """

    name = "lease reclaimer"
    every = 1.0

    def __init__(
        self,
        broker: Broker,
        store: StoreConnection | None,
        clock: Clock,
        *,
        worker: str,
        lanes: Sequence[str],
        dead_workers: Callable[[str], frozenset[bytes] | None],
        alive: Callable[[str], bool] = lambda owner: False,
        turn: Callable[[], bool] = lambda: True,
        lease: float = 15.0,
        grace: float = 7.0,
        on_failed: Callable[[JobFailure], None] = lambda failure: None,
        on_direct_failed: Callable[[Delivery, int, str], None] = lambda delivery, attempts, error: None,
    ) -> None:
        """Take over nothing yet.

        Args:
            broker: The one with leases.
            store: Where the rows are; None for a worker without a database.
            clock: Of this host.
            worker: Who takes over.
            lanes: Which lanes are checked.
            dead_workers: The references that the slots of a dead worker name as running, or None when nobody here
                can read its slots (another host, or lost with the power).
            alive: Whether a worker is still announced. A claim whose answer got lost leaves deliveries that their
                owner does not know of; its other jobs must not be ended for them.
            turn: Whether it is ours to look for more, and nobody else's at this moment.
            lease: Seconds after which a delivery that nobody renewed is taken over.
            grace: Seconds that owners get to renew after a gap in which nobody could.
            on_failed: Called with each row whose job failed by the death of its worker.
            on_direct_failed: The same for direct jobs, with the number of attempts and the error.
        """
        check_times(self.name, lease=lease, grace=grace)
        self.every = min(self.every, lease / 4)
        self._broker = broker
        self._store = store
        self._clock = clock
        self._worker = worker
        self._lanes = lanes
        self._dead_workers = dead_workers
        self._alive = alive
        self._turn = turn
        self._lease = lease
        self._grace = grace
        self._on_failed = on_failed
        self._on_direct_failed = on_direct_failed
        self._taken: list[Taken] = []
        #: Monotonic time since when every step has got its answers and left nothing undecided; None: not now.
        self.clear_since: float | None = None
        self._clear_at = clock.monotonic()

    def step(self) -> bool:
        """Deal with what we took over before, then take over more; return whether the round goes on."""
        since, self.clear_since = self.clear_since, None
        try:
            more = self._round()
        except StaleGeneration:
            # What we hold of the old one is decided all the same; telling the broker then finds the lease lost.
            self._broker.generation()
            return False
        if not self._taken:
            now = self._clock.monotonic()
            stood_still = now - self._clear_at > self._lease  # nobody looked for the leases that ran out meanwhile
            self.clear_since, self._clear_at = (now if since is None or stood_still else since), now
        return more

    def _round(self) -> bool:
        self._keep()
        trouble = self._deal()
        more = False
        for _ in range(MOST_PAGES if self._turn() else 0):
            more = self._take_over()
            trouble = self._deal() or trouble
            if not more:
                break
        if trouble is not None:
            raise trouble
        return more

    def _keep(self) -> None:
        """Renew what we still hold, so that no other worker takes it over."""
        if self._taken:
            lost = set(self._broker.renew(self._worker, [one.delivery.lease for one in self._taken]))
            # What is not decided is decided all the same: whoever has it now knows nothing of its first owner.
            self._taken = [one for one in self._taken if one.verdict is None or one.delivery.lease not in lost]

    def _take_over(self) -> bool:
        """Reclaim one page; return whether there is another."""
        lease_ms, grace_ms = int(self._lease * 1000), round(self._grace * 1000)
        found = self._broker.reclaim(self._worker, self._lanes, lease_ms=lease_ms, grace_ms=grace_ms)
        if found.deliveries:
            crash_point("reclaim.claimed")
        for owner, jobs in Counter(owner for _, owner in found.deliveries).items():
            log.warning(
                "Taken over from the worker %s, because the leases ran out: %s.",
                owner,
                "1 job" if jobs == 1 else f"{jobs} jobs",
                extra={"action": "jobs_taken_over", "owner": owner, "jobs": jobs},
            )
        now = self._clock.monotonic()
        self._taken += [Taken(delivery, _read(delivery), owner, now) for delivery, owner in found.deliveries]
        return found.more

    def _deal(self) -> StoreError | None:
        """Decide, write down and give back as far as the servers answer; return what PostgreSQL refused with."""
        trouble: StoreError | None = None
        for owner in dict.fromkeys(one.owner for one in self._taken if one.verdict is None):
            try:
                self._decide(owner, [one for one in self._taken if one.owner == owner and one.verdict is None])
            except StoreError as error:
                trouble = error
        for one in [one for one in self._taken if one.verdict is not None]:
            self._apply(one)
            self._taken.remove(one)
        return trouble

    def _decide(self, owner: str, lost: Sequence[Taken]) -> None:
        """Give each of these, which ``owner`` lost, its verdict; leave it without one if it has to wait."""
        if owner == self._worker:
            give_back(lost)
            return
        if self._alive(owner):
            # An announcement may outlast its worker a little; a whole lease on, the worker lives.
            patience = self._clock.monotonic() - self._lease
            since = [one for one in lost if one.since <= patience]
            if self._store is not None and since:
                # Unless it has got a lease anew, as after an outage of Redis, it has killed what ran under the old one.
                gone = self._broker.renew(self._worker, [one.delivery.lease for one in since])
                end_runs(self._store, owner, [one for one in since if one.delivery.lease not in gone])
            give_back(since)
            return
        running = self._dead_workers(owner)
        for one in lost:
            one.verdict = without_row(one.delivery, one.reference, running)
        of_rows = [one for one in lost if one.verdict is None]
        if self._store is None:
            give_back(of_rows)
        elif of_rows:
            for failure in charge_rows(self._store, owner, of_rows, running):
                self._on_failed(failure)

    def _apply(self, one: Taken) -> None:
        """Apply the verdict in the broker; a lease that was lost meanwhile ends elsewhere."""
        match one.verdict:
            case Verdict.SETTLE:
                self._broker.settle([one.delivery])
            case Verdict.FAIL:
                error = f"It killed its worker {MAX_CRASHES} times."
                self._broker.fail(one.delivery, error)
                self._on_direct_failed(one.delivery, one.delivery.attempts + 1, error)
            case _:
                crashed = one.verdict is Verdict.CHARGE_CRASH
                self._broker.release(one.delivery, Release(delay_ms=0, charge_crash=crashed, count=False))
                crash_point("reclaim.released")


def _read(delivery: Delivery) -> Reference | None:
    try:
        return Reference.unpack(delivery.reference)
    except WireError as error:
        log.warning("A delivery is given back unread: %s", error, extra={"action": "reclaim_unread"})
        return None
