"""Hear from the zygote and the children, and see them die.

It never waits for Redis or PostgreSQL: whatever has to be written goes to the settler's queue.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from sidestream.broker.protocol import Delivery, Publication
from sidestream.crashpoints import crash_point
from sidestream.executors.protocol import ActionFacts
from sidestream.worker import wire
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.pool import ProcessPool
from sidestream.worker.slots import Reading, Slots
from sidestream.worker.state import RECOVERY, ChildState, KillReason, WorkerState
from sidestream.worker.zygote import facts_from_wire, kill_group

log = logging.getLogger(__name__)

TICK = 0.05
"""Seconds between two looks at limits and stalls."""
NAMED = 5
"""Most actions that a warning names."""
ZYGOTE_PAUSE = 1.0
"""Seconds until the next zygote when the last one died before it was ready: the next may meet the same."""
LOADS_MOST = 3
"""So many zygotes in a row that die before they are ready end the worker: what they load ends them."""


class Settling(Protocol):
    """What the collector tells the settler; nothing here waits."""

    def done(self, deliveries: list[Delivery]) -> None:
        """These are done."""
        ...

    def job_report(self, delivery: Delivery, job_report: wire.JobReport) -> None:
        """This one ended otherwise."""
        ...

    def crashed(
        self, delivery: Delivery, reading: Reading, slot: int, kill_reason: KillReason | None, how: str
    ) -> None:
        """The child that ran this one ended."""
        ...

    def release(self, deliveries: list[Delivery]) -> None:
        """Release these: whether they ended is unknown, and their rows decide."""
        ...

    def follow_ups(self, jobs: Sequence[Publication]) -> None:
        """Publish these: the transaction that wrote their rows is committed."""
        ...


class Collector:
    """The thread that reads every socket of the supervisor."""

    def __init__(
        self,
        state: WorkerState,
        pool: ProcessPool,
        slots: Slots,
        dispatcher: Dispatcher,
        settler: Settling,
        timeout_monitor: Any,
        *,
        on_actions: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_actions`` is called when a zygote has reported its actions, under the state's lock."""
        self._on_actions = on_actions
        self._state = state
        self._pool = pool
        self._slots = slots
        self._dispatcher = dispatcher
        self._settler = settler
        self._timeout_monitor = timeout_monitor
        self._selector = selectors.DefaultSelector()
        #: Children that ended, until the zygote says whether it outlived them.
        self._ended: dict[int, tuple[ChildState, Reading]] = {}
        #: Actions that the loading zygote has reported so far.
        self._loading: list[ActionFacts] = []
        #: Zygotes in a row that died before they were ready.
        self._died_loading = 0
        #: When a zygote may be started (monotonic).
        self._start_at = 0.0
        #: Set when the application could not be loaded: the worker cannot go on.
        self.failure: str | None = None

    def run(self) -> None:
        """Serve until the worker is stopped."""
        while not self._state.stopped and self.failure is None:
            with self._state.changed:
                self._timeout_monitor.tick()
                self._fill_up()
                self._dispatcher.hand_out()  # what came back since: recalled jobs, jobs that have to run alone
            for key, _ in self._selector.select(TICK):
                kind, child = key.data
                with self._state.changed:
                    if kind == "control":
                        self._zygote_says(child)
                    elif child.ended:
                        continue  # an earlier event of this poll reported its end
                    elif kind == "end":
                        self._child_says(child)
                    else:
                        self._child_ended(child)

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()

    def _start_zygote(self) -> None:
        control = self._pool.start_zygote()
        self._loading = []
        self._selector.register(control, selectors.EVENT_READ, ("control", control))

    def _zygote_says(self, control: socket.socket) -> None:
        try:
            message = wire.receive(control)
        except ConnectionResetError:
            message = None
        except wire.BadPacket as error:
            log.error("The zygote is ended: %s.", error, extra={"action": "zygote_unreadable"})
            message = None
        match message:
            case None:
                self._zygote_ended(control)
            case ["actions", facts]:
                self._loading += map(facts_from_wire, facts)
            case ["ready"]:
                known = {fact.tag: fact for fact in self._loading}
                if known.keys() != self._state.actions.keys():
                    self._state.announced = False
                    self._tell_unserved(known.values())
                self._state.actions = known
                self._on_actions()
                self._pool.ready = control is self._pool.control
                self._died_loading = 0
            case ["forked", slot, pid]:
                self._forked(self._state.children.get(slot), pid)
            case ["exited", pid, status]:
                self._reaped(pid, status)
            case ["failed", reason]:
                self.failure = reason

    def _tell_unserved(self, actions: Collection[ActionFacts]) -> None:
        """Log which queues no worker serves: their jobs wait without an error."""
        served = {lane.partition(":")[2] for lane in self._state.options.lanes}
        for queue in sorted({facts.queue for facts in actions} - served):
            log.warning(
                "The queue %r of %s is not served by this worker: their jobs wait unless another one serves it. "
                "To serve it here, name it in the setting queues.",
                queue,
                ", ".join(sorted(facts.name for facts in actions if facts.queue == queue)[:NAMED]),
                extra={"action": "queue_not_served"},
            )

    def _zygote_ended(self, control: socket.socket) -> None:
        self._selector.unregister(control)
        log.warning(
            "The zygote ended; its children end with it; another one is started.", extra={"action": "zygote_ended"}
        )
        was_ready = self._pool.ready or control is not self._pool.control
        self._pool.zygote_gone(control)
        if not was_ready:
            self._died_loading += 1
            if self._died_loading >= LOADS_MOST and self.failure is None:
                self.failure = (
                    f"The process that loads the application ended {LOADS_MOST} times in a row before that was done, "
                    "most likely by the application's own code; what it printed last says more."
                )
        for child, reading in [ended for ended in self._ended.values() if ended[0].control is control]:
            child.kill_reason = child.kill_reason or KillReason.ZYGOTE
            self._settle_dead(child, reading, "its zygote ended")
            del self._ended[child.pid]
        for child in list(self._state.children.values()):
            if (
                child.control is control and not child.pid
            ):  # asked for, never forked; its end of file may have been seen before
                if child.end in self._selector.get_map():
                    self._selector.unregister(child.end)
                child.ended = True
                self._pool.forget(child)
        self._start_at = time.monotonic() + (0.0 if was_ready else ZYGOTE_PAUSE)

    def _fill_up(self) -> None:
        for control in self._pool.outdated([child for child, _ in self._ended.values()]):
            self._selector.unregister(control)
            self._pool.zygote_gone(control)
        if self._pool.control is None and self.failure is None and time.monotonic() >= self._start_at:
            self._start_zygote()
        if not self._pool.ready or self._state.draining:
            return
        for slot in range(self._state.options.children):
            if slot not in self._state.children and (child := self._pool.spawn(slot)) is not None:
                self._selector.register(child.end, selectors.EVENT_READ, ("end", child))

    def _forked(self, child: ChildState | None, pid: int) -> None:
        if child is None:
            kill_group(pid)  # the request was given up meanwhile
            return
        if self._pool.forked(child, pid):
            self._selector.register(child.pidfd, selectors.EVENT_READ, ("pid", child))
            self._dispatcher.hand_out()
            self._state.changed.notify_all()
        else:
            self._child_ended(child)

    def _child_says(self, child: ChildState) -> None:
        report = self._receive(child)
        if report is not None:
            self._reported(child, report)
        elif child.end.fileno() >= 0 and child.end in self._selector.get_map():
            # The child closed, died, or is killed for what it sent; its pidfd tells for certain.
            self._selector.unregister(child.end)

    def _receive(self, child: ChildState) -> wire.Report | None:
        """Return what the child says; None when nothing more is to be read of it."""
        try:
            return wire.receive_report(child.end)
        except (BlockingIOError, ConnectionResetError):
            return None
        except wire.BadPacket as error:
            log.error("Child %s is killed: %s.", child.pid, error, extra={"action": "child_unreadable"})
            self._pool.kill(child, KillReason.UNREADABLE)
            return None

    def _reported(self, child: ChildState, report: wire.Report) -> None:
        state = self._state
        crash_point("supervisor.collected")
        if report.number != child.batch:
            return
        state.measured(report.times)
        if report.follow_ups:
            self._settler.follow_ups(report.follow_ups)
        self._take_results(child, report)
        if report.idle:
            unstarted = child.deliveries[report.upto :]
            child.deliveries, child.reported = [], 0
            state.backlog.extendleft(reversed(unstarted))
            state.lone_ended(child)
            if report.stale:
                self._pool.renew(child.control)
            if report.retiring:
                log.info(
                    "The child in slot %s (process %s) is replaced: it has reached its age or memory limit, or the "
                    "application changed.",
                    child.slot,
                    child.pid,
                    extra={"action": "child_replaced", "slot": child.slot, "pid": child.pid},
                )
                self._pool.retire(child)
            state.last_fetch_short = False
            self._dispatcher.hand_out()
            self._dispatcher.wake()

    def _take_results(self, child: ChildState, report: wire.Report) -> None:
        found = {job_report.position: job_report for job_report in report.job_reports}
        done = []
        for index in range(child.reported, min(report.upto, len(child.deliveries))):
            delivery = child.deliveries[index]
            if index in found:
                self._settler.job_report(delivery, found[index])
            else:
                done.append(delivery)
        child.reported = max(child.reported, report.upto)
        if done:
            self._settler.done(done)

    def _child_ended(self, child: ChildState) -> None:
        """Handle the end of a child: read its last messages, then its slot."""
        if child.pidfd >= 0 and child.pidfd in self._selector.get_map():
            self._selector.unregister(child.pidfd)
        if child.end in self._selector.get_map():
            self._selector.unregister(child.end)
        child.end.setblocking(False)
        while child.kill_reason is not KillReason.UNREADABLE and (report := self._receive(child)) is not None:
            self._reported(child, report)
        kill_group(child.pid)
        child.ended = True
        reading = self._slots.read(child.slot)
        # The slot is given to a new child at once; the verdict waits until the zygote said that it outlived this one.
        self._ended[child.pid] = (child, reading)
        if child.kill_reason is None and (interrupted := _interrupted(child, reading)) is not None:
            # Now, not with the verdict: the child in its place may be forked before the zygote tells of this one.
            self._state.recovering[interrupted.reference] = time.monotonic() + RECOVERY
        self._pool.forget(child)
        self._state.lone_ended(child)
        if child.orphaned:
            self._reaped(child.pid, signal.SIGKILL)

    def _reaped(self, pid: int, status: int) -> None:
        """The zygote reaped this child: it outlived it."""
        ended = self._ended.pop(pid, None)
        if ended is None:
            # Told before its pidfd was seen; look again when that arrives.
            for child in self._state.children.values():
                if child.pid == pid:
                    self._child_ended(child)
                    ended = self._ended.pop(pid, None)
                    break
        if ended is not None:
            child, reading = ended
            if child.kill_reason is None and status & 0x7F == signal.SIGTERM:
                child.kill_reason = KillReason.TERMINATED
            self._settle_dead(child, reading, _how(status))

    def _settle_dead(self, child: ChildState, reading: Reading, how: str) -> None:
        """Charge what ran, take back what did not."""
        state = self._state
        deliveries = child.deliveries
        if not child.retiring and not state.draining:
            log.warning(
                "The child in slot %s (process %s) has ended: %s; another one takes its place.",
                child.slot,
                child.pid,
                how if child.kill_reason is None else f"it was killed ({child.kill_reason})",
                extra={"action": "child_ended", "slot": child.slot, "pid": child.pid},
            )
        if not deliveries:
            return
        started = reading.started > 0 and reading.batch == child.batch
        position = reading.position if started else -1
        finished = [d for i, d in enumerate(deliveries) if child.reported <= i < position]
        if finished and child.kill_reason is KillReason.UNREADABLE:
            self._settler.release(finished)  # what was said of them may be what could not be read
        elif finished:
            # Whatever did not end as done is reported at once, so these are done.
            self._settler.done(finished)
        if (interrupted := _interrupted(child, reading)) is not None:
            kill_reason = child.kill_reason
            if kill_reason is KillReason.UNREADABLE:
                kill_reason, how = None, f"its process {kill_reason}"
            if kill_reason is not None:
                state.recovering.pop(interrupted.reference, None)
            if child.killed_for not in (None, interrupted.reference):
                # It was killed for the one before, which ended in that moment: this one is innocent.
                kill_reason = KillReason.STOPPING
            self._settler.crashed(interrupted, reading, child.slot, kill_reason, how)
        state.backlog.extendleft(reversed(deliveries[max(position + 1, child.reported) :]))
        child.deliveries = []
        self._dispatcher.hand_out()
        state.changed.notify_all()


def _interrupted(child: ChildState, reading: Reading) -> Delivery | None:
    """Return what the child that ended had started and not reported, if anything."""
    started = reading.started > 0 and reading.batch == child.batch
    if started and child.reported <= reading.position < len(child.deliveries):
        return child.deliveries[reading.position]
    return None


def _how(status: int) -> str:
    if status & 0x7F:
        name = signal.Signals(status & 0x7F).name
        return f"its process was killed by {name}"
    return f"its process ended with exit code {status >> 8}"
