"""Claim jobs for idle children, and send them to the children in batches.

A claim requests one job for each idle child, and in advance more jobs without keys whose measured work stays below
``prefetch`` seconds per child. A batch contains at most ``batch`` seconds of measured work. A job that was never
measured, or that has a key, is sent alone.

Two kinds of jobs hold other starts back for a bounded time. An accused job starts when the running jobs have ended, or
after ``END_OTHERS`` seconds beside them. Then no other job starts until it ends, or for ``ALONE_MOST`` seconds.
Afterwards other jobs get as much time as they were held back. In the recovery period after an unclean end, jobs start
one at a time, at most ``ALONE_MOST`` seconds apart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from sidestream.broker.protocol import Broker, Delivery
from sidestream.crashpoints import crash_point
from sidestream.errors import BrokerError, BrokerUnavailable, StaleGeneration
from sidestream.job.job import is_accused
from sidestream.job.reference import NO_TAG8
from sidestream.worker import wire
from sidestream.worker.slots import Slots
from sidestream.worker.state import (
    ALONE_MOST,
    END_OTHERS,
    UNKNOWN_COST,
    ChildState,
    Lone,
    WorkerState,
    is_direct,
    is_keyed,
)
from sidestream.worker.troubles import Troubles

log = logging.getLogger(__name__)

CLAIM_WAIT_MS = 1000
"""Longest blocked claim, in milliseconds."""
CLAIM_MOST = 1024
"""Maximum number of jobs that one claim requests in advance."""
BACKLOG_MOST = 2048
"""Maximum number of jobs held in advance, however short they are."""
DIRECT = NO_TAG8.hex()
"""Prefix of the lanes of direct jobs."""
RETRY_PAUSE = 0.25
"""Seconds between two claims while no broker answers."""


class Dispatcher:
    """The claiming thread, and the sending of batches, which other threads also call."""

    def __init__(
        self,
        state: WorkerState,
        broker: Broker,
        slots: Slots,
        *,
        prepare_alone: Callable[[Delivery, ChildState], None],
        end_alone: Callable[[Lone], None],
        release: Callable[[list[Delivery]], None],
        on_stale_generation: Callable[[], None],
    ) -> None:
        self._release = release
        self._state = state
        self._broker = broker
        self._slots = slots
        self._prepare_alone = prepare_alone
        self._end_alone = end_alone
        self._on_stale_generation = on_stale_generation
        self._troubles = Troubles(log)

    def run(self) -> None:
        """Claim jobs until the worker drains."""
        while True:
            wanted = self._wait_for_room()
            if wanted is None:
                return
            free, prefetch = wanted
            deliveries = self._claim(free, prefetch)
            self._take_in(deliveries, wanted)

    def hand_out(self) -> None:
        """Send the backlog to idle children. Call it under the state's lock."""
        state = self._state
        if state.draining:
            return
        if state.quiet:
            self.release_waiting()
            return
        if state.unwritten:
            self._release_rows()
        now = time.monotonic()
        if self._runs_alone(now) or self._hand_out_accused(now):
            return
        idle = state.idle_children()
        if state.recovery_until > now:
            if idle and state.backlog:
                until = min(now + ALONE_MOST, state.recovery_until)
                self._start_alone(Lone(state.backlog.popleft(), idle[0], until, accused=False))
            return
        while idle and state.backlog:
            child = idle.pop()
            share = -(-len(state.backlog) // (len(idle) + 1))
            self._send(child, self._next_batch(share))

    def release_waiting(self) -> None:
        """Release the jobs that were not sent to a child. Call it under the state's lock."""
        for line in (self._state.backlog, self._state.alone):
            if line:
                self._release(list(line))
                line.clear()

    def _release_rows(self) -> None:
        """Release the waiting jobs that have rows, because their outcome could not be written."""
        for line in (self._state.backlog, self._state.alone):
            rows = [delivery for delivery in line if not is_direct(delivery)]
            if rows:
                direct = [delivery for delivery in line if is_direct(delivery)]
                self._release(rows)
                line.clear()
                line.extend(direct)

    def send_alone(self, delivery: Delivery, child: ChildState) -> None:
        """Send a job that runs alone after its attempt row was written. Needs the state's lock."""
        child.reserved = False
        leaving = self._state.draining or self._state.quiet
        accused = self._state.accused is not None and self._state.accused.child is child
        if child.kill_reason is None and not child.ended and not leaving:
            self._send(child, [delivery], alone=True, run_alone=accused)
            return
        # The child died while the row was written, perhaps because PostgreSQL was unavailable. The release tells the
        # row that the job did not start.
        self._state.lone_ended(child)
        self._release([delivery])

    def wake(self) -> None:
        """Wake the claiming thread if it can claim. Needs the state's lock, after handing out."""
        if self._state.draining or self._wanted() is not None:
            self._state.changed.notify_all()

    def _wait_for_room(self) -> tuple[int, int] | None:
        """Wait until a claim makes sense; return (free, prefetch), or None when draining."""
        state = self._state
        with state.changed:
            while not state.draining:
                self.hand_out()
                if (wanted := self._wanted()) is not None:
                    return wanted
                state.changed.wait(0.5)
        return None

    def _wanted(self) -> tuple[int, int] | None:
        """Return what to claim now, as (free, prefetch), or None."""
        state = self._state
        if state.quiet or not state.announced or not self._lanes():
            return None
        now = time.monotonic()
        if state.exclusive is not None or self._accused_waits(now):
            return None  # running jobs must end first, or a job runs alone
        run_alone = state.recovery_until > now
        idle = min(len(state.idle_children()), 1 if run_alone else state.options.children)
        if idle and not state.backlog:
            return idle, (0 if run_alone else self._room())
        if not run_alone and not state.last_fetch_short and state.backlog and (room := self._room()) >= 64:
            return 0, room
        return None

    def _room(self) -> int:
        """Return the number of jobs that may be claimed in advance."""
        state = self._state
        if state.pace >= UNKNOWN_COST:
            return 0
        most = int(state.options.prefetch * state.options.children / max(state.pace, 1e-5))
        return max(0, min(most, BACKLOG_MOST) - len(state.backlog)) if most >= 2 else 0

    def _lanes(self) -> Sequence[str]:
        """Return the lanes to claim from; while outcomes cannot be written, those of direct jobs."""
        lanes = self._state.options.lanes
        return [lane for lane in lanes if lane.startswith(DIRECT)] if self._state.unwritten else lanes

    def _claim(self, free: int, prefetch: int) -> list[Delivery]:
        options = self._state.options
        try:
            found = self._broker.claim(
                options.worker,
                self._lanes(),
                free=free,
                prefetch=min(prefetch, CLAIM_MOST),
                wait_ms=CLAIM_WAIT_MS if free else 0,
            )
            self._troubles.over("claim_unavailable", "Jobs are claimed")
            self._troubles.over("claim_refused", "Jobs are claimed")
            return found
        except StaleGeneration:
            self._on_stale_generation()
        except BrokerUnavailable as error:
            self._troubles.met("claim_unavailable", "No broker answers, trying again: %s", error)
        except BrokerError as error:
            self._troubles.met("claim_refused", "The broker cannot be used: %s", error, level=logging.ERROR)
        with self._state.changed:
            if not self._state.draining:
                self._state.changed.wait(RETRY_PAUSE)
        return []

    def _take_in(self, deliveries: list[Delivery], wanted: tuple[int, int]) -> None:
        if deliveries:
            crash_point("supervisor.claimed")
        state = self._state
        with state.changed:
            state.last_fetch_short = len(deliveries) < sum(wanted) // 2
            state.add_held(deliveries)
            for delivery in deliveries:
                # A direct job has no row that would mark it as accused.
                (state.alone if is_accused(delivery.crashes) else state.backlog).append(delivery)
            self.hand_out()
        if deliveries:
            crash_point("supervisor.dispatched")

    def _next_batch(self, share: int) -> list[Delivery]:
        state = self._state
        first = state.backlog.popleft()
        batch = [first]
        spent = state.cost(first)
        size = len(first.reference) + len(first.payload or b"")
        if is_keyed(first):
            return batch
        while state.backlog and len(batch) < share:
            following = state.backlog[0]
            spent += state.cost(following)
            size += len(following.reference) + len(following.payload or b"") + 16
            if is_keyed(following) or spent > state.options.batch or size > wire.BATCH_BYTES:
                break
            batch.append(state.backlog.popleft())
        return batch

    def _runs_alone(self, now: float) -> bool:
        """Return whether a job runs alone now; end that when its time is over."""
        state, lone = self._state, self._state.exclusive
        if lone is None:
            return False
        if now < lone.until:
            return True
        if not lone.accused and now < state.recovery_until:
            # Withdraw its record before others start, or it would be charged for a death that one of them causes.
            lone.until = state.recovery_until
            self._end_alone(lone)
            return True
        if not lone.accused:
            self._end_alone(lone)
        state.resume_others()
        state.changed.notify_all()
        return False

    def _accused_waits(self, now: float) -> bool:
        """Return whether an accused job must start next."""
        state = self._state
        return bool(state.alone) and state.accused is None and now >= state.rest_until

    def _hand_out_accused(self, now: float) -> bool:
        """Start a waiting accused job; return whether other jobs must wait for it."""
        state = self._state
        if not self._accused_waits(now):
            state.held_back_since = None  # the accused job may have been released
            return False
        if state.held_back_since is None:
            state.held_back_since = now
        idle = state.idle_children()
        if idle and (not state.running() or now >= state.held_back_since + END_OTHERS):
            state.accused = Lone(state.alone.popleft(), idle[0], now + ALONE_MOST, accused=True)
            self._start_alone(state.accused)
        return True

    def _start_alone(self, lone: Lone) -> None:
        lone.child.reserved = True
        self._state.exclusive = lone
        self._prepare_alone(lone.delivery, lone.child)

    def _send(self, child: ChildState, batch: list[Delivery], *, alone: bool = False, run_alone: bool = False) -> None:
        child.batch += 1
        child.deliveries = batch
        child.reported = 0
        child.recalled = -1
        if alone:
            # Its attempt row records that it runs alone; a later row would hide that when the worker dies.
            child.recorded = (child.batch, 0)
        self._slots.assign(child.slot, child.batch, len(batch))
        items = [wire.Item(d.reference, d.payload, d.attempts, run_alone) for d in batch]
        try:
            wire.send_batch(child.end, wire.Batch(child.batch, items))
        except OSError:
            # The child has just died. The collector will detect that and take back the batch, of which no job started.
            log.info("Child %s ended before its batch was sent.", child.pid, extra={"action": "child_gone"})
