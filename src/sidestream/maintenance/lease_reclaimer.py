"""Take over the deliveries of dead workers.

For each delivery whose lease ran out:

1. find its owner: this worker (the answer was lost, or it was frozen), another announced worker, or a dead one;
2. end the sessions that a dead worker left in PostgreSQL, so that its rows are free;
3. charge the row of a job that ran there: a crash when it ran alone, a suspicion when it may have been the cause;
4. only then release the delivery, or settle it when its row has ended.

A job that was claimed but did not run is not charged. While PostgreSQL is away, deliveries of rows stay here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from sidestream.broker.protocol import Broker, Delivery
from sidestream.clock import Clock
from sidestream.crashpoints import crash_point
from sidestream.errors import StaleGeneration, StoreError, WireError
from sidestream.job.job import MAX_CRASHES
from sidestream.job.observer import JobFailure
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.maintenance.store_connection import Cursor, StoreConnection
from sidestream.maintenance.task import check_times
from sidestream.store import deaths, sessions

log = logging.getLogger(__name__)

MOST_PAGES = 10
"""Most pages (of up to 100 deliveries) that one step takes over."""


def _nobody(owner: str) -> bool:
    """Without announcements, count every worker whose lease ran out as dead."""
    return False


def _always() -> bool:
    """Whoever is alone looks at every step."""
    return True


class Verdict(Enum):
    """What to do with a delivery in the broker, once its row is written."""

    GIVE_BACK = "give back"
    CHARGE_CRASH = "give back with a crash"
    FAIL = "fail"
    SETTLE = "settle"


@dataclass(slots=True, eq=False)
class Taken:
    """A delivery that we took over."""

    delivery: Delivery
    #: None when its bytes cannot be read.
    reference: Reference | None
    #: Who lost it.
    owner: str
    #: Monotonic time at which we took it.
    since: float
    #: Decided once, however often the broker call has to be repeated.
    verdict: Verdict | None = None


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
        alive: Callable[[str], bool] = _nobody,
        turn: Callable[[], bool] = _always,
        lease: float = 15.0,
        grace: float = 7.0,
        on_failed: Callable[[JobFailure], None] = lambda failure: None,
        on_direct_failed: Callable[[Delivery, int, str], None] = lambda delivery, attempts, error: None,
    ) -> None:
        """Take over nothing yet.

        Args:
            broker: The one with leases.
            clock: Of this host.
            worker: Who takes over.
            lanes: Which lanes are checked.
            store: Where the rows are; None for a worker without a database.
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

    def _take_over(self) -> bool:
        """Reclaim one page; return whether there is another."""
        found = self._broker.reclaim(
            self._worker,
            self._lanes,
            lease_ms=int(self._lease * 1000),
            grace_ms=round(self._grace * 1000),
        )
        if found.deliveries:
            crash_point("reclaim.claimed")
        for owner, jobs in Counter(owner for _, owner in found.deliveries).items():
            log.warning(
                "%s jobs are taken over from the worker %s: their leases ran out.",
                jobs,
                owner,
                extra={"action": "jobs_taken_over", "owner": owner, "jobs": jobs},
            )
        now = self._clock.monotonic()
        self._taken += [Taken(delivery, _read(delivery), owner, now) for delivery, owner in found.deliveries]
        return found.more

    def _keep(self) -> None:
        """Renew what we still hold, so that nobody takes it over from us."""
        if self._taken:
            lost = set(self._broker.renew(self._worker, [one.delivery.lease for one in self._taken]))
            # What is not decided is decided all the same: whoever has it now knows nothing of its first owner.
            self._taken = [one for one in self._taken if one.verdict is None or one.delivery.lease not in lost]

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
            _all(lost, Verdict.GIVE_BACK)
            return
        if self._alive(owner):
            # An announcement may outlast its worker a little; a whole lease on, the worker lives.
            patience = self._clock.monotonic() - self._lease
            _all([one for one in lost if one.since <= patience], Verdict.GIVE_BACK)
            return
        running = self._dead_workers(owner)
        of_rows = []
        for one in lost:
            if one.reference is None:
                one.verdict = Verdict.GIVE_BACK
            elif one.reference.direct:
                one.verdict = _direct_verdict(one.delivery, running)
            else:
                of_rows.append(one)
        if of_rows:
            self._decide_rows(owner, of_rows, running)

    def _decide_rows(self, owner: str, lost: Sequence[Taken], running: frozenset[bytes] | None) -> None:
        """Free the rows of a dead worker and write down which of them may have killed it."""
        if self._store is None:
            _all(lost, Verdict.GIVE_BACK)
            return
        with self._store.cursor("ending the sessions of a dead worker") as cursor:
            gone, _ = sessions.terminate_worker(cursor, owner)
        if not gone:
            raise StoreError(f"A PostgreSQL session of the dead worker {owner} does not end; it is ended again.")
        ran = [one for one in lost if running is None or one.delivery.reference in running]
        failed: list[JobFailure] = []
        if ran:
            with self._store.transaction("charging the jobs of a dead worker") as cursor:
                if not deaths.lock(cursor, owner):
                    raise StoreError(f"The jobs of the dead worker {owner} are being charged by another worker.")
                verdicts = [(one, _charge(cursor, one, failed)) for one in ran]
            for one, verdict in verdicts:
                one.verdict = verdict
            for failure in failed:
                self._on_failed(failure)
        _all([one for one in lost if one not in ran], Verdict.GIVE_BACK)

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


def _charge(cursor: Cursor, one: Taken, failed: list[JobFailure]) -> Verdict | None:
    """Write to the row what its owner's death means; None when another session holds the row for now."""
    assert one.reference is not None
    # The sessions of its owner are gone: the attempts that are read now are those that it was started with.
    written = deaths.charge(cursor, one.reference.id, one.owner, failed)
    if written.locked:
        return None
    return Verdict.SETTLE if written.terminal or written.missing else Verdict.GIVE_BACK


def _direct_verdict(delivery: Delivery, running: frozenset[bytes] | None) -> Verdict:
    """A direct job has no row to be suspected in: each delivery counts that may have run when its worker died.

    One that was charged twice runs as an accused job does, so that a bystander is not there at the third death.
    """
    if running is not None and delivery.reference not in running:
        return Verdict.GIVE_BACK
    return Verdict.FAIL if delivery.crashes + 1 >= MAX_CRASHES else Verdict.CHARGE_CRASH


def _all(some: Sequence[Taken], verdict: Verdict) -> None:
    for one in some:
        one.verdict = verdict
