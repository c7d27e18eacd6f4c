"""Enforce hard limits, recall stalled batches, and record jobs that run for a while.

Called by the collector about every 50 ms, under the state's lock; reads shared memory only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sidestream.broker.protocol import Delivery
from sidestream.job.reference import action_of
from sidestream.worker.pool import ProcessPool
from sidestream.worker.settler import Settler
from sidestream.worker.slots import Reading, Slots
from sidestream.worker.state import ChildState, KillReason, WorkerState

log = logging.getLogger(__name__)

SHOWN_AFTER = 0.5
"""A job that runs longer than this many seconds gets an attempt row, so that pages can show it as running."""


class TimeoutMonitor:
    """Enforces hard limits and takes back what waits behind a slow job."""

    def __init__(
        self,
        state: WorkerState,
        pool: ProcessPool,
        slots: Slots,
        settler: Settler,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._pool = pool
        self._slots = slots
        self._settler = settler
        self._monotonic = monotonic

    def tick(self) -> None:
        """Look at every child once."""
        now = self._monotonic()
        stalled = bool(self._state.children)
        for child in list(self._state.children.values()):
            if not child.deliveries:
                stalled = stalled and (child.retiring or self._state.exclusive is not None)
                continue
            reading = self._slots.read(child.slot)
            if reading.batch != child.batch or not reading.running or reading.started <= 0:
                stalled = False
                continue
            seconds = now - reading.started
            stalled = stalled and seconds > 2 * self._state.options.prefetch
            self._check(child, reading, seconds)
        if stalled and (self._state.backlog or self._state.alone):
            # Others have time for them, or the broker keeps them where a pause or a cancel still reaches them.
            self._settler.release([*self._state.backlog, *self._state.alone])
            self._state.backlog.clear()
            self._state.alone.clear()
            self._state.last_fetch_short = True

    def _check(self, child: ChildState, reading: Reading, seconds: float) -> None:
        if reading.position >= len(child.deliveries):
            return
        delivery = child.deliveries[reading.position]
        if seconds > self._hard_limit(delivery) and child.kill_reason is None:
            log.warning(
                "Job in slot %s runs longer than its hard limit of %g s; its process is killed.",
                child.slot,
                self._hard_limit(delivery),
                extra={"action": "hard_limit"},
            )
            self._pool.kill(child, KillReason.LIMIT, delivery.reference)
        if seconds > SHOWN_AFTER and child.recorded != (child.batch, reading.position):
            child.recorded = (child.batch, reading.position)
            self._settler.started(delivery, child.slot, seconds)
        if seconds > self._state.options.prefetch and len(child.deliveries) > reading.position + 1:
            self._recall(child, reading)

    def _recall(self, child: ChildState, reading: Reading) -> None:
        if child.recalled != reading.position:
            # First look: forbid the child to start the next one. It may be doing so this very moment,
            self._slots.recall(child.slot)
            child.recalled = reading.position
            return
        # so only what it has not started by the next look is given to others.
        self._state.backlog.extendleft(reversed(child.deliveries[reading.position + 1 :]))
        del child.deliveries[reading.position + 1 :]
        self._state.changed.notify_all()

    def _hard_limit(self, delivery: Delivery) -> float:
        facts = self._state.actions.get(action_of(delivery.reference))
        if facts is not None and facts.hard_limit is not None:
            return facts.hard_limit
        return self._state.options.hard_limit
