"""Read the messages of the zygote and the children, and detect their ends.

The collector never waits for Redis or PostgreSQL: it gives everything that must be written to the settler.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Collection

from sidestream.broker.protocol import Delivery
from sidestream.crashpoints import crash_point
from sidestream.executors.protocol import ActionFacts
from sidestream.worker import wire
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.pool import ProcessPool
from sidestream.worker.settler import Settler
from sidestream.worker.slots import Reading, Slots
from sidestream.worker.state import RECOVERY, ChildState, KillReason, WorkerState
from sidestream.worker.timeout_monitor import TimeoutMonitor
from sidestream.worker.zygote import facts_from_wire, kill_group

log = logging.getLogger(__name__)

TICK = 0.05
"""Seconds between two checks of time limits and stalled batches."""
NAMED = 5
"""Maximum number of actions that a warning names."""
ZYGOTE_PAUSE = 1.0
"""Seconds to wait after a zygote died before it was ready, because the next one may die for the same reason."""
MAX_LOADS = 3
"""Number of zygotes that may die in a row before they are ready; then the worker ends."""


class Collector:
    """The thread that reads every socket of the supervisor."""

    def __init__(
        self,
        state: WorkerState,
        pool: ProcessPool,
        slots: Slots,
        dispatcher: Dispatcher,
        settler: Settler,
        timeout_monitor: TimeoutMonitor,
        *,
        on_actions: Callable[[], None] = lambda: None,
    ) -> None:
        """Call ``on_actions`` under the state's lock when a zygote has reported its actions."""
        self._on_actions = on_actions
        self._state = state
        self._pool = pool
        self._slots = slots
        self._dispatcher = dispatcher
        self._settler = settler
        self._timeout_monitor = timeout_monitor
        self._selector = selectors.DefaultSelector()
        #: Children that have ended, by pid, until the zygote reports their exit or ends itself.
        self._ended: dict[int, tuple[ChildState, Reading]] = {}
        #: Actions that the loading zygote has reported so far.
        self._loading: list[ActionFacts] = []
        #: Number of zygotes in a row that died before they were ready.
        self._died_loading = 0
        #: Monotonic time from which a zygote may be started.
        self._start_at = 0.0
        #: Why the application could not be loaded, which ends the worker.
        self.failure: str | None = None

    def run(self) -> None:
        """Serve until the worker is stopped."""
        while not self._state.stopped and self.failure is None:
            with self._state.changed:
                self._timeout_monitor.tick()
                self._fill_up()
                self._dispatcher.hand_out()  # recalled jobs, and jobs that must run alone
            for key, _ in self._selector.select(TICK):
                kind, child = key.data
                with self._state.changed:
                    if kind == "control":
                        self._read_zygote(child)
                    elif child.ended:
                        continue  # an earlier event of this loop has handled its end
                    elif kind == "end":
                        self._read_child(child)
                    else:
                        self._child_ended(child)

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()

    def _start_zygote(self) -> None:
        control = self._pool.start_zygote()
        self._loading = []
        self._selector.register(control, selectors.EVENT_READ, ("control", control))

    def _read_zygote(self, control: socket.socket) -> None:
        try:
            message = wire.receive(control)
        except ConnectionResetError:
            message = None
        except wire.BadPacket as error:
            log.error("The zygote is stopped: %s.", error, extra={"action": "zygote_unreadable"})
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
                    self._warn_unserved(known.values())
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

    def _warn_unserved(self, actions: Collection[ActionFacts]) -> None:
        """Log the queues that this worker does not serve, because their jobs wait without an error."""
        served = {lane.partition(":")[2] for lane in self._state.options.lanes}
        for queue in sorted({facts.queue for facts in actions} - served):
            log.warning(
                "This worker does not serve the queue %r of %s; their jobs wait unless another worker serves it. "
                "To serve it here, add it to the setting queues.",
                queue,
                ", ".join(sorted(facts.name for facts in actions if facts.queue == queue)[:NAMED]),
                extra={"action": "queue_not_served"},
            )

    def _zygote_ended(self, control: socket.socket) -> None:
        self._selector.unregister(control)
        log.warning(
            "The zygote and its children have ended; another zygote is started.", extra={"action": "zygote_ended"}
        )
        was_ready = self._pool.ready or control is not self._pool.control
        self._pool.zygote_gone(control)
        if not was_ready:
            self._died_loading += 1
            if self._died_loading >= MAX_LOADS and self.failure is None:
                self.failure = (
                    f"The process that loads the application ended {MAX_LOADS} times in a row before it was ready, "
                    "most likely because of the application's own code; see what it printed last."
                )
        for child, reading in [ended for ended in self._ended.values() if ended[0].control is control]:
            child.kill_reason = child.kill_reason or KillReason.ZYGOTE
            self._settle_dead(child, reading, "its zygote ended")
            del self._ended[child.pid]
        for child in list(self._state.children.values()):
            if (
                child.control is control and not child.pid
            ):  # requested and never forked; its end of file may have been read before
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
            kill_group(pid)  # the request was withdrawn meanwhile
            return
        if self._pool.forked(child, pid):
            self._selector.register(child.pidfd, selectors.EVENT_READ, ("pid", child))
            self._dispatcher.hand_out()
            self._state.changed.notify_all()
        else:
            self._child_ended(child)

    def _read_child(self, child: ChildState) -> None:
        report = self._receive(child)
        if report is not None:
            self._reported(child, report)
        elif child.end.fileno() >= 0 and child.end in self._selector.get_map():
            # The child closed its end, died, or was killed for its message; its pidfd signals its end.
            self._selector.unregister(child.end)

    def _receive(self, child: ChildState) -> wire.Report | None:
        """Return the child's next report; None if there is none."""
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
        # A new child gets the slot immediately. What ran is charged after the zygote has reported this child's exit,
        # because the death of the zygote would be the cause of the child's.
        self._ended[child.pid] = (child, reading)
        if child.kill_reason is None and (interrupted := _interrupted(child, reading)) is not None:
            # Reserve a child now, because the next one may be forked before the zygote reports this one's exit.
            self._state.recovering[interrupted.reference] = time.monotonic() + RECOVERY
        self._pool.forget(child)
        self._state.lone_ended(child)
        if child.orphaned:
            self._reaped(child.pid, signal.SIGKILL)

    def _reaped(self, pid: int, status: int) -> None:
        """Handle the zygote's report that it reaped this child, which it therefore outlived."""
        ended = self._ended.pop(pid, None)
        if ended is None:
            # The report arrived before the event of the child's pidfd.
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
        """Charge the job that ran, and take back those that did not."""
        state = self._state
        deliveries = child.deliveries
        if not child.retiring and not state.draining:
            log.warning(
                "The child in slot %s (process %s) has ended: %s; another one replaces it.",
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
            self._settler.release(finished)  # the message that could not be read may have reported them
        elif finished:
            # A child reports every other outcome before it starts the next job, so these are done.
            self._settler.done(finished)
        if (interrupted := _interrupted(child, reading)) is not None:
            kill_reason = child.kill_reason
            if kill_reason is KillReason.UNREADABLE:
                kill_reason, how = None, f"its process {kill_reason}"
            if kill_reason is not None:
                state.recovering.pop(interrupted.reference, None)
            if child.killed_for not in (None, interrupted.reference):
                # It was killed because of the previous job, which ended at that moment, so this one is not charged.
                kill_reason = KillReason.STOPPING
            self._settler.crashed(interrupted, reading, child.slot, kill_reason, how)
        state.backlog.extendleft(reversed(deliveries[max(position + 1, child.reported) :]))
        child.deliveries = []
        self._dispatcher.hand_out()
        state.changed.notify_all()


def _interrupted(child: ChildState, reading: Reading) -> Delivery | None:
    """Return the delivery that the ended child had started and not reported, if any."""
    started = reading.started > 0 and reading.batch == child.batch
    if started and child.reported <= reading.position < len(child.deliveries):
        return child.deliveries[reading.position]
    return None


def _how(status: int) -> str:
    if status & 0x7F:
        name = signal.Signals(status & 0x7F).name
        return f"its process was killed by {name}"
    return f"its process ended with exit code {status >> 8}"
