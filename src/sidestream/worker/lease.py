"""Renew a worker's leases, announce the worker, and restate leases in a new generation.

This runs in a separate thread, so that no job, slow write or blocked claim can delay a renewal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from sidestream.broker.failover import PROBE_EVERY
from sidestream.broker.protocol import Broker, Delivery, Lease
from sidestream.crashpoints import crash_point
from sidestream.errors import BrokerError, StaleGeneration
from sidestream.job.reference import Reference
from sidestream.worker.pool import ProcessPool
from sidestream.worker.slots import Slots
from sidestream.worker.state import KillReason, WorkerState

log = logging.getLogger(__name__)

UNWRITTEN = 10.0
"""Longest time, in seconds, for which the lease of an ended job is renewed while its outcome is not written."""
ANNOUNCED_JOBS = 64
"""Maximum number of running jobs in one announcement."""


class LeaseRenewer:
    """The thread of a supervisor that renews leases."""

    def __init__(
        self,
        state: WorkerState,
        broker: Broker,
        pool: ProcessPool,
        slots: Slots,
        *,
        probe: Callable[[], object] | None = None,
    ) -> None:
        self._slots = slots
        self._state = state
        self._broker = broker
        self._pool = pool
        self._probe = probe
        self._wake = threading.Condition()
        self._stale_generation = False
        self._announce_due = False
        self._stopped = False
        self._away = False
        #: Whether Redis has answered before.
        self._met = False
        #: Monotonic time since which a held job neither runs nor waits to run here, by reference.
        self._ended: dict[bytes, float] = {}

    def run(self) -> None:
        """Renew every ``options.renew_interval`` seconds until stopped."""
        due = 0.0
        while not self._stopped:
            if self._probe is not None:
                self._probe()
            if due <= 0 or self._stale_generation or self._announce_due:
                self._announce_due = False
                self._renew()
                due = self._state.options.renew_interval
            with self._wake:
                if not self._stale_generation and not self._announce_due and not self._stopped:
                    self._wake.wait(min(due, PROBE_EVERY))
            due -= PROBE_EVERY

    def on_stale_generation(self) -> None:
        """Restate all leases immediately, because Redis was emptied or replaced."""
        with self._wake:
            self._stale_generation = True
            self._wake.notify()

    def announce_now(self) -> None:
        """Announce the worker immediately, because its announcement has changed."""
        with self._wake:
            self._announce_due = True
            self._wake.notify()

    def stop(self) -> None:
        """End the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def _renew(self) -> None:
        options = self._state.options
        try:
            if self._stale_generation:
                try:
                    self._reassert()
                except BrokerError:
                    # Redis became unavailable in between, and the PostgreSQL broker gets the announcement.
                    with contextlib.suppress(BrokerError):
                        self._announce()
                    raise
            self._announce()
            with self._state.lock:
                leases = [delivery.lease for delivery in self._kept()]
            crash_point("renew.before")
            lost = self._broker.renew(options.worker, leases) if leases else []
            crash_point("renew.renewed")
            self._away, self._met = False, True
        except StaleGeneration:
            self._stale_generation = True
            return
        except BrokerError as error:
            if not self._away:
                log.warning("Leases cannot be renewed now: %s", error, extra={"action": "renew_failed"})
            self._away = True
            self._broker_informed()  # rows are claimed without Redis, also if no generation could be begun
            return
        if lost:
            self._drop(lost)

    def _kept(self) -> list[Delivery]:
        """Return the deliveries whose leases are renewed. Call it under the state's lock.

        A job that ended here is among them for ``UNWRITTEN`` seconds. If its outcome cannot be written in that time,
        another worker takes it over.
        """
        state, now = self._state, time.monotonic()
        here = {delivery.reference for line in (state.backlog, state.alone) for delivery in line}
        for child in state.children.values():
            here.update(delivery.reference for delivery in child.deliveries[child.reported :])
        self._ended = {reference: self._ended.get(reference, now) for reference in state.held if reference not in here}
        given_up = {reference for reference, since in self._ended.items() if now - since > UNWRITTEN}
        return [delivery for reference, delivery in state.held.items() if reference not in given_up]

    def _announce(self) -> None:
        """Announce the worker and its actions, so that the broker offers it no others."""
        options, state = self._state.options, self._state
        with state.lock:
            actions = frozenset(state.actions)
        self._broker.announce(options.worker, options.lanes, self._info(), int(options.lease * 1000), actions)
        self._broker_informed(actions)

    def _broker_informed(self, actions: frozenset[bytes] | None = None) -> None:
        """Allow claims: the broker knows ``actions``, or (None) is unavailable and learns them."""
        with self._state.changed:
            if not self._state.announced and actions in (None, self._state.actions.keys()):
                self._state.announced = True
                self._state.changed.notify_all()

    def _reassert(self) -> None:
        """Restate all leases, in a new generation or after an outage of Redis."""
        options, state = self._state.options, self._state
        with state.settle_lock:
            if not self._broker.generation().number:
                self._broker.begin_generation()
            with state.lock:
                held = self._kept()
            renewed = self._broker.reassert(options.worker, held) if held else []
            with state.lock:
                for delivery in renewed:
                    if delivery.reference in state.held:
                        state.held[delivery.reference] = delivery
        self._stale_generation = False
        if held or self._met:  # else this worker is the first that meets this Redis
            log.warning(
                "Redis was emptied, replaced or unavailable; leases that were restated: %s.",
                len(renewed),
                extra={"action": "reasserted"},
            )

    def _drop(self, lost: list[Lease]) -> None:
        """Handle lost leases: kill the jobs that run under them and drop those that wait."""
        gone = set(lost)
        with self._state.changed:
            references = {reference for reference, held in self._state.held.items() if held.lease in gone}
            for reference in references:
                del self._state.held[reference]
            for line in (self._state.backlog, self._state.alone):
                kept = [delivery for delivery in line if delivery.reference not in references]
                line.clear()
                line.extend(kept)
            for child in self._state.children.values():
                if any(d.reference in references for d in child.deliveries[child.reported :]):
                    log.warning(
                        "The lease of a job in slot %s was lost; its process is killed.",
                        child.slot,
                        extra={"action": "lease_lost"},
                    )
                    self._pool.kill(child, KillReason.LOST)

    def _info(self) -> str:
        state = self._state
        with state.lock:
            names = sorted(facts.name for facts in state.actions.values())
            running = state.running()
            jobs = self._jobs()
        return json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "children": state.options.children,
                "running": running,
                "draining": state.draining,
                "quiet": state.quiet,
                "actions": names,
                "jobs": jobs,
            }
        )

    def _jobs(self) -> list[dict[str, object]]:
        """Return the running jobs for people, ``since`` in Unix seconds. Needs the state's lock."""
        found: list[dict[str, object]] = []
        now, monotonic = time.time(), time.monotonic()
        for child in self._state.children.values():
            running = self._slots.read(child.slot)
            if not running.running or running.batch != child.batch or len(found) >= ANNOUNCED_JOBS:
                continue
            reference = Reference.unpack(running.reference)
            facts = self._state.actions.get(reference.action)
            found.append(
                {
                    "job": reference.id if reference.uuid is None else str(reference.uuid),
                    "action": facts.name if facts is not None else reference.action.hex(),
                    "slot": child.slot,
                    "since": round(now - (monotonic - running.started), 3),
                }
            )
        return found
