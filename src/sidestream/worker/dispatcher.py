"""Claim for free capacity, and hand out what was claimed.

A claim asks for one job for each idle child, and for more without a key in advance as long as their measured work stays
under ``prefetch`` seconds a child. A batch carries at most ``batch`` seconds of measured work; a job that was never
measured, or has a key, travels alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sidestream.broker.protocol import Broker, Delivery
from sidestream.crashpoints import crash_point
from sidestream.errors import BrokerError, BrokerUnavailable, GenerationMoved
from sidestream.worker import wire
from sidestream.worker.slots import Slots
from sidestream.worker.state import UNKNOWN_COST, ChildState, WorkerState, is_keyed

log = logging.getLogger(__name__)

CLAIM_WAIT_MS = 1000
"""Longest blocked claim."""
CLAIM_MOST = 1024
"""Most jobs that one claim asks for in advance."""
BACKLOG_MOST = 2048
"""Most jobs held in advance, however cheap they are."""
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
        hand_back: Callable[[list[Delivery]], None],
        on_moved: Callable[[], None],
    ) -> None:
        self._hand_back = hand_back
        self._state = state
        self._broker = broker
        self._slots = slots
        self._prepare_alone = prepare_alone
        self._on_moved = on_moved

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
            self.hand_back_waiting()
            return
        if state.alone or state.exclusive is not None:
            self._hand_out_alone()
            return
        idle = state.idle_children()
        while idle and state.backlog:
            child = idle.pop()
            share = -(-len(state.backlog) // (len(idle) + 1))
            self._send(child, self._next_batch(share), careful=False)

    def hand_back_waiting(self) -> None:
        """Give back what was claimed and not sent to a child. Call it under the state's lock."""
        for line in (self._state.backlog, self._state.alone):
            if line:
                self._hand_back(list(line))
                line.clear()

    def send_alone(self, delivery: Delivery, child: ChildState) -> None:
        """Send a job that runs alone, now that its attempt row is written. Call it under the state's lock."""
        child.reserved = False
        leaving = self._state.draining or self._state.quiet
        if child.doom is None and not child.ended and not leaving:
            self._send(child, [delivery], careful=True)
            return
        # It died while the row was being written, maybe because PostgreSQL was away: another child takes its place.
        if self._state.exclusive is child:
            self._state.exclusive = None
        self._state.alone.appendleft(delivery)
        if leaving:
            self.hand_back_waiting()

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
        if state.quiet or not state.announced:
            return None
        careful = state.careful_until > time.monotonic()
        idle = len(state.idle_children())
        if state.alone or state.exclusive is not None:
            idle = 0  # somebody waits to run alone: let the others finish
        elif careful:
            idle = min(idle, 1) if not state.running() else 0
        if idle and not state.backlog:
            return idle, (0 if careful else self._room())
        if not careful and not state.dry and state.backlog and (room := self._room()) >= 64:
            return 0, room
        return None

    def _room(self) -> int:
        """Return how many jobs may be claimed in advance."""
        state = self._state
        if state.pace >= UNKNOWN_COST or state.alone or state.exclusive is not None:
            return 0
        most = int(state.options.prefetch * state.options.children / max(state.pace, 1e-5))
        return max(0, min(most, BACKLOG_MOST) - len(state.backlog)) if most >= 2 else 0

    def _claim(self, free: int, prefetch: int) -> list[Delivery]:
        options = self._state.options
        try:
            return self._broker.claim(
                options.supervisor,
                options.lanes,
                free=free,
                prefetch=min(prefetch, CLAIM_MOST),
                wait_ms=CLAIM_WAIT_MS if free else 0,
            )
        except GenerationMoved:
            self._on_moved()
        except BrokerUnavailable as error:
            log.warning("No broker answers, trying again: %s", error, extra={"action": "claim_unavailable"})
        except BrokerError as error:
            log.error("The broker cannot be used: %s", error, extra={"action": "claim_refused"})
        with self._state.changed:
            if not self._state.draining:
                self._state.changed.wait(RETRY_PAUSE)
        return []

    def _take_in(self, deliveries: list[Delivery], wanted: tuple[int, int]) -> None:
        if deliveries:
            crash_point("supervisor.claimed")
        state = self._state
        with state.changed:
            state.dry = len(deliveries) < sum(wanted) // 2
            state.add_held(deliveries)
            if state.careful_until > time.monotonic():
                state.alone.extend(deliveries)
            else:
                state.backlog.extend(deliveries)
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

    def _hand_out_alone(self) -> None:
        state = self._state
        if state.exclusive is not None or state.running():
            return
        idle = state.idle_children()
        if idle and state.alone:
            child = idle[0]
            child.reserved = True
            state.exclusive = child
            self._prepare_alone(state.alone.popleft(), child)

    def _send(self, child: ChildState, batch: list[Delivery], *, careful: bool) -> None:
        child.batch += 1
        child.deliveries = batch
        child.reported = 0
        child.recalled = -1
        if careful:
            # Its attempt row says that it runs alone; a later one would hide that from who charges a dead worker's job.
            child.recorded = (child.batch, 0)
        self._slots.assign(child.slot, child.batch, len(batch))
        items = [wire.Item(d.reference, d.payload, d.attempts, d.crashes, careful) for d in batch]
        try:
            wire.send_batch(child.end, wire.Batch(child.batch, items))
        except OSError:
            # It died this moment: the collector sees its end and takes the batch back, nothing of it was started.
            log.info("Child %s is gone before its batch was sent.", child.pid, extra={"action": "child_gone"})
