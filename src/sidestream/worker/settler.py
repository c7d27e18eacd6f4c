"""Write outcomes: failures to PostgreSQL first, then everything to the broker, in batches.

One thread empties a queue and waits for PostgreSQL for a bounded time. While PostgreSQL does not answer, outcomes stay
queued, and their leases are renewed for a limited time. While only the broker does not answer, its calls are repeated
later, so that jobs claimed from PostgreSQL do not wait for them. Nothing is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress

from sidestream.broker.protocol import Broker, Delivery, Publication, from_fallback
from sidestream.crashpoints import crash_point
from sidestream.errors import BrokerError, StaleGeneration, StoreError, StoreUnavailable
from sidestream.worker import wire
from sidestream.worker.inbox import Inbox
from sidestream.worker.outcome_writer import OutcomeWriter, RowBusy
from sidestream.worker.settlement import Settlement
from sidestream.worker.slots import Reading
from sidestream.worker.state import ALONE_MOST, ChildState, KillReason, Lone, WorkerState, may_block_others
from sidestream.worker.troubles import Troubles

log = logging.getLogger(__name__)

SETTLE_MOST = 512
"""Maximum number of deliveries in one settle."""
GATHER = 0.02
"""Longest time, in seconds, that a job without a key waits to be settled in a batch while more jobs are claimed. No job
depends on it, and the row of an unsettled job says that it is done. Odoo's jobs take a millisecond or more each, so a
shorter time would settle them one by one."""
SOON = 0.005
"""The same when no more jobs are claimed: another job may wait for the slot of a limit."""
AGAIN_AFTER = 0.2
"""Seconds until a failed write is repeated."""
BUSY_AFTER = 0.01
"""Seconds until the first repetition when an ending session still holds the row; each one doubles it."""
BUSY_AT_STOP = 4.0
"""Longest time, in seconds, to wait for such a session when the worker stops."""


@dataclass(slots=True)
class Task:
    """One write other than "done"."""

    #: The name for logs.
    what: str
    #: Writes to PostgreSQL and decides; called again later if it raises StoreError or RowBusy.
    decide: Callable[[], Settlement | None]
    #: The delivery that it concerns, if any.
    delivery: Delivery | None = None
    #: The written decision. It is made once, even if the call of the broker is repeated.
    settlement: Settlement | None = None
    decided: bool = False
    #: Seconds until the next attempt if a session holds its row; else 0.
    busy: float = 0.0
    #: The error of PostgreSQL in the last attempt, if any.
    refused: StoreError | None = None

    @property
    def line(self) -> tuple[bytes, bool]:
        """Return the identity of its lease; tasks of one lease keep their order."""
        # Without the token, which a new generation changes. Each broker leases a job at most once.
        return (self.delivery.reference, from_fallback(self.delivery)) if self.delivery is not None else (b"", False)


class Settler:
    """The thread of the supervisor that writes outcomes and ends deliveries."""

    def __init__(
        self,
        state: WorkerState,
        broker: Broker,
        outcome_writer: OutcomeWriter,
        *,
        send_alone: Callable[[Delivery, ChildState], None],
        on_stale_generation: Callable[[], None],
    ) -> None:
        self._state = state
        self._broker = broker
        self._outcome_writer = outcome_writer
        self._send_alone = send_alone
        self._on_stale_generation = on_stale_generation
        self._inbox: Inbox[list[Delivery] | Task | None] = Inbox()
        self._done: list[Delivery] = []
        self._tasks: list[Task] = []
        #: Tasks to repeat at ``_again_at`` (monotonic), by :attr:`Task.line`, each line in its order.
        self._aside: dict[tuple[bytes, bool], list[Task]] = {}
        self._troubles = Troubles(log)
        self._unsettled: list[Delivery] = []
        self._again_at = 0.0

    # Called by the other threads; none of these waits.

    def done(self, deliveries: list[Delivery]) -> None:
        """Settle deliveries that are done."""
        # Other jobs of its key, or limit key, may wait for it.
        self._inbox.put(deliveries, urgent=any(map(may_block_others, deliveries)))

    def job_report(self, delivery: Delivery, job_report: wire.JobReport) -> None:
        """Settle a delivery that is not done, as its report says."""

        def decide() -> Settlement:
            crash_point("settle.before_store")
            settlement = self._outcome_writer.reported(delivery, job_report)
            crash_point("settle.stored")
            return settlement

        self._inbox.put(Task("an outcome", decide, delivery), urgent=True)

    def crashed(
        self, delivery: Delivery, reading: Reading, slot: int, kill_reason: KillReason | None, how: str
    ) -> None:
        """Settle a delivery whose child has ended."""

        def decide() -> Settlement:
            crash_point("crash.noticed")
            settlement = self._outcome_writer.crashed(delivery, reading, slot, kill_reason, how)
            crash_point("crash.recorded")
            return settlement

        self._inbox.put(Task("a crash", decide, delivery), urgent=True)

    def started(self, delivery: Delivery, slot: int, seconds: float) -> None:
        """Write the attempt row of a job that has run for a while."""
        self._inbox.put(
            Task("an attempt row", lambda: self._outcome_writer.started(delivery, slot, seconds), delivery), urgent=True
        )

    def release(self, deliveries: list[Delivery]) -> None:
        """Release deliveries without a charge."""
        for delivery in deliveries:
            self._inbox.put(
                Task("a release", partial(self._outcome_writer.not_started, delivery), delivery), urgent=True
            )

    def prepare_alone(self, delivery: Delivery, child: ChildState) -> None:
        """Write the attempt row of a job that runs alone, then send it."""

        def decide() -> None:
            self._outcome_writer.started(delivery, child.slot, 0.0)
            with self._state.changed:
                self._send_alone(delivery, child)

        self._inbox.put(Task("a lone start", decide, delivery), urgent=True)

    def end_alone(self, lone: Lone) -> None:
        """Record that a job no longer runs alone, then let other jobs start."""

        def decide() -> None:
            self._outcome_writer.started(lone.delivery, lone.child.slot, ALONE_MOST)
            with self._state.changed:
                if self._state.exclusive is lone:
                    self._state.resume_others()
                    self._state.changed.notify_all()

        self._inbox.put(Task("the end of a lone start", decide, lone.delivery), urgent=True)

    def follow_ups(self, jobs: Sequence[Publication]) -> None:
        """Publish what a committed job enqueued."""
        self._inbox.put(Task("follow-up jobs", lambda: self._publish(jobs)), urgent=True)

    def stop(self) -> None:
        """Write what is queued, as far as the servers answer, then end."""
        self._inbox.put(None, urgent=True)

    def run(self) -> None:
        """Write until :meth:`stop`."""
        stopping, until = False, 0.0
        # The last written outcome may release a job that waited to start alone.
        while not stopping or not self._inbox.empty() or (self._is_busy() and time.monotonic() < until):
            patience = max(0.0, self._again_at - time.monotonic()) if self._unsettled or self._aside else None
            if self._take(patience if not stopping or self._is_busy() else 0.0):
                stopping, until = True, time.monotonic() + BUSY_AT_STOP
                self._again_at = 0.0
            if time.monotonic() >= self._again_at:
                self._again_at = time.monotonic() + AGAIN_AFTER
                self._try_again()
            self._write_tasks()
            self._settle()
        left = len(self._unsettled) + sum(map(len, self._aside.values()))
        if left:
            log.warning(
                "%s outcomes did not reach the broker before the stop. Their leases expire, and the rows decide.",
                left,
                extra={"action": "settle_abandoned"},
            )

    def _take(self, patience: float | None) -> bool:
        """Take what other threads queued; return whether a stop was requested."""
        stopping = False
        for entry in self._inbox.take(patience, lambda: GATHER if self._state.backlog else SOON):
            if entry is None:
                stopping = True
            elif isinstance(entry, Task):
                self._tasks.append(entry)
            else:
                self._done.extend(entry)
        return stopping

    def _try_again(self) -> None:
        """Queue again what was set aside, before newer tasks."""
        if self._aside:
            self._tasks[:0] = chain.from_iterable(self._aside.values())
            self._aside = {}
        if self._unsettled:
            self._done[:0] = self._unsettled
            self._unsettled = []

    def _write_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            if task.line in self._aside:
                self._set_aside(task)
                continue
            waited, task.busy, task.refused = task.busy, 0.0, None
            try:
                self._write(task)
                continue
            except RowBusy:
                # A terminated session ends within milliseconds; if it does not, other tasks do not wait for it.
                task.busy = min(max(BUSY_AFTER, 2 * waited), AGAIN_AFTER)
                self._again_at = min(self._again_at, time.monotonic() + task.busy)
            except StaleGeneration:
                self._on_stale_generation()
            except StoreError as error:
                self._troubles.met("write_again", "Cannot write %s to PostgreSQL, retrying: %s", task.what, error)
                task.refused = error
            except BrokerError as error:
                # Other tasks may concern only rows, or deliveries of another broker. One log line covers all failures.
                self._troubles.met("tell_again", "Cannot report %s to the broker, retrying: %s", task.what, error)
            self._set_aside(task)
        self._update_unwritten()

    def _update_unwritten(self) -> None:
        """Stop claiming rows while PostgreSQL is unavailable here; other workers may reach it."""
        refused = [task.refused for tasks in self._aside.values() for task in tasks if task.refused is not None]
        if not refused:
            self._troubles.over("write_again", "Outcomes are written")
        unwritten = any(isinstance(error, StoreUnavailable) for error in refused)
        if unwritten != self._state.unwritten:
            with self._state.changed:
                self._state.unwritten = unwritten
                self._state.changed.notify_all()

    def _is_busy(self) -> bool:
        return any(task.busy for tasks in self._aside.values() for task in tasks)

    def _set_aside(self, task: Task) -> None:
        self._aside.setdefault(task.line, []).append(task)

    def _write(self, task: Task) -> None:
        if not task.decided:
            task.settlement = task.decide()
            task.decided = True
        if task.settlement is not None and task.delivery is not None:
            self._apply(task.delivery, task.settlement)
            if not from_fallback(task.delivery):
                self._troubles.over("tell_again", "Outcomes reach the broker")

    def _settle(self) -> None:
        done, self._done = self._done, []
        # Settled separately, because deliveries of the PostgreSQL broker do not need Redis.
        with self._state.lock:
            away = [from_fallback(self._state.current(delivery)) for delivery in done]
        kept = list(compress(done, away))
        shared = [delivery for delivery, fallback in zip(done, away, strict=True) if not fallback] if kept else done
        self._unsettled += self._settle_these(kept) + self._settle_these(shared)

    def _settle_these(self, done: list[Delivery]) -> list[Delivery]:
        """Settle in batches; return what could not be settled now."""
        while done:
            crash_point("settle.before_broker")
            try:
                with self._state.settle_lock:
                    batch = [self._state.current(delivery) for delivery in done[:SETTLE_MOST]]
                    self._broker.settle(batch)
                    self._forget(batch)
            except StaleGeneration:
                self._on_stale_generation()
                return done
            except BrokerError as error:
                self._troubles.met("settle_again", "Cannot settle deliveries, retrying: %s", error)
                return done
            if not from_fallback(batch[0]):
                self._troubles.over("settle_again", "Deliveries are settled")
            crash_point("settle.settled")
            done = done[SETTLE_MOST:]
        return done

    def _apply(self, delivery: Delivery, settlement: Settlement) -> None:
        """Apply the outcome writer's decision."""
        with self._state.changed:
            # A worker takes one accused job at a time; further ones are released to other workers.
            room = self._state.accused is None and not self._state.alone
            if settlement.run_alone and room and not self._state.draining:
                self._state.alone.append(self._state.current(delivery))
                self._state.changed.notify_all()
                return
            self._state.recovering.pop(delivery.reference, None)
            held_here = self._state.held.get(delivery.reference)
            ready = (
                not self._state.draining and not self._state.quiet and self._state.recovery_until <= time.monotonic()
            )
            if settlement.run_again and held_here is not None and ready:
                self._state.backlog.appendleft(held_here)
                self._state.changed.notify_all()
                return
        with self._state.settle_lock:
            held = self._state.current(delivery)
            releases = settlement.apply(self._broker, held)
            self._forget([held])
        if settlement.fail is not None:
            self._outcome_writer.failed(held, settlement.fail, settlement.detail)
        if releases > 0:
            self._outcome_writer.released(delivery, releases, settlement.release.reason)

    def _publish(self, publications: Sequence[Publication]) -> None:
        try:
            self._broker.publish(publications)
        except StaleGeneration:
            raise
        except BrokerError as error:
            # Their rows are committed: the reconciler publishes them when the broker answers again.
            log.info("The reconciler will publish follow-up jobs: %s", error, extra={"action": "publish_left"})

    def _forget(self, deliveries: list[Delivery]) -> None:
        with self._state.lock:
            for delivery in deliveries:
                held = self._state.held.get(delivery.reference)
                if held is not None and held.lease == delivery.lease:
                    del self._state.held[delivery.reference]
