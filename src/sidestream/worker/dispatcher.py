"""Claim for free capacity, and hand out what was claimed.

A claim asks for one job for each idle child, and for more without a key in advance as long as their measured work stays
under ``prefetch`` seconds a child. A batch carries at most ``batch`` seconds of measured work; a job that was never
measured, or has a key, travels alone.

Two kinds of jobs hold others up, for a bounded time. A job whose host died repeatedly while it ran (an accused one) is
started when what runs has ended, or after ``END_OTHERS`` seconds beside it; then nothing else is started for
``ALONE_MOST`` seconds, or until it ends. Afterwards others have the worker for as long as they were held up. And for a
while after an unclean end of a worker, jobs start one at a time, each ``ALONE_MOST`` seconds after the one before at
the latest.
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
"""Longest blocked claim."""
CLAIM_MOST = 1024
"""Most jobs that one claim asks for in advance."""
BACKLOG_MOST = 2048
"""Most jobs held in advance, however cheap they are."""
DIRECT = NO_TAG8.hex()
"""What the lanes of direct jobs begin with."""
RETRY_PAUSE = 0.25
"""Seconds between two claims while no broker answers."""


class Dispatcher:
    """The claiming thread, and the hand-out that other threads call as well."""

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
        """Claim until a drain is asked for."""
        while True:
            wanted = self._wait_for_room()
            if wanted is None:
                return
            free, prefetch = wanted
            deliveries = self._claim(free, prefetch)
            self._take_in(deliveries, wanted)

    def hand_out(self) -> None:
        """Send what is in the backlog to idle children. Call it under the state's lock."""
        state = self._state
        if state.draining:
            return
        if state.quiet:
            self.release_waiting()
            return
        if state.unwritten:
            self._release_rows()
        now = time.monotonic()
        if self._held_up(now) or self._hand_out_accused(now):
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
        """Give back what was claimed and not sent to a child. Call it under the state's lock."""
        for line in (self._state.backlog, self._state.alone):
            if line:
                self._release(list(line))
                line.clear()

    def _release_rows(self) -> None:
        """Give back what waits here and has a row: its outcome could not be written."""
        for line in (self._state.backlog, self._state.alone):
            rows = [delivery for delivery in line if not is_direct(delivery)]
            if rows:
                direct = [delivery for delivery in line if is_direct(delivery)]
                self._release(rows)
                line.clear()
                line.extend(direct)

    def send_alone(self, delivery: Delivery, child: ChildState) -> None:
        """Send a job that runs alone, now that its attempt row is written. Call it under the state's lock."""
        child.reserved = False
        leaving = self._state.draining or self._state.quiet
        accused = self._state.accused is not None and self._state.accused.child is child
        if child.kill_reason is None and not child.ended and not leaving:
            self._send(child, [delivery], alone=True, run_alone=accused)
            return
        # It died while the row was being written, maybe because PostgreSQL was away; the row is to say that, too.
        self._state.lone_ended(child)
        self._release([delivery])

    def wake(self) -> None:
        """Wake the claiming thread if it has something to do. Call it under the state's lock, after handing out."""
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
        """Return what to claim now, as (free, prefetch); None when nothing is to be claimed."""
        state = self._state
        if state.quiet or not state.announced or not self._lanes():
            return None
        now = time.monotonic()
        if state.exclusive is not None or self._accused_waits(now):
            return None  # what runs is to end, or what starts now is to be alone
        run_alone = state.recovery_until > now
        idle = min(len(state.idle_children()), 1 if run_alone else state.options.children)
        if idle and not state.backlog:
            return idle, (0 if run_alone else self._room())
        if not run_alone and not state.last_fetch_short and state.backlog and (room := self._room()) >= 64:
            return 0, room
        return None

    def _room(self) -> int:
        """Return how many jobs may be claimed in advance."""
        state = self._state
        if state.pace >= UNKNOWN_COST:
            return 0
        most = int(state.options.prefetch * state.options.children / max(state.pace, 1e-5))
        return max(0, min(most, BACKLOG_MOST) - len(state.backlog)) if most >= 2 else 0

    def _lanes(self) -> Sequence[str]:
        """Return the lanes to claim from: those of direct jobs alone while no outcome of others can be written."""
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
                # No row says of a direct job that it ran during several deaths.
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

    def _held_up(self, now: float) -> bool:
        """Whether nothing may be started beside the job that runs alone; end its time when it is over."""
        state, lone = self._state, self._state.exclusive
        if lone is None:
            return False
        if now < lone.until:
            return True
        if not lone.accused and now < state.recovery_until:
            # Its row has to say so before others start, or it alone would be charged for what one of them does.
            lone.until = state.recovery_until
            self._end_alone(lone)
            return True
        if not lone.accused:
            self._end_alone(lone)
        state.go_on()
        state.changed.notify_all()
        return False

    def _accused_waits(self, now: float) -> bool:
        """Whether an accused job is to be started next."""
        state = self._state
        return bool(state.alone) and state.accused is None and now >= state.rest_until

    def _hand_out_accused(self, now: float) -> bool:
        """Start the accused job that waits; return whether others have to wait for it."""
        state = self._state
        if not self._accused_waits(now):
            state.held_up_since = None  # the one that others were held up for may have been given back
            return False
        if state.held_up_since is None:
            state.held_up_since = now
        idle = state.idle_children()
        if idle and (not state.running() or now >= state.held_up_since + END_OTHERS):
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
            # Its attempt row says that it runs alone; a later row would hide that when its worker dies.
            child.recorded = (child.batch, 0)
        self._slots.assign(child.slot, child.batch, len(batch))
        items = [wire.Item(d.reference, d.payload, d.attempts, d.crashes, run_alone) for d in batch]
        try:
            wire.send_batch(child.end, wire.Batch(child.batch, items))
        except OSError:
            # It died this moment: the collector sees its end and takes the batch back, nothing of it was started.
            log.info("Child %s ended before its batch was sent.", child.pid, extra={"action": "child_gone"})
