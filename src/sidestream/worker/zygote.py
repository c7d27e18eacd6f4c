"""Load the application once, then only fork children and report their ends.

1. receives its orders from the supervisor (:class:`Orders`);
2. loads the application, as soon as that is possible, and reports the actions it found;
3. forks a child for each request, handing it the socket that came with the request and keeping no copy;
4. reaps children and reports each death;
5. when the supervisor ends, kills the children's process groups and ends.

It has one thread and no connection of any kind, so a fork copies nothing that two processes could share by accident.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import msgpack

from sidestream.crashpoints import crash_point
from sidestream.errors import ApplicationError, SidestreamError
from sidestream.executors.protocol import ActionFacts, ApplicationNotReady, Executor
from sidestream.job.observer import JobFailure, observers
from sidestream.job.retry import RetryPolicy
from sidestream.logs import mark_records, set_job
from sidestream.process import die_with_parent, set_nice, set_oom_score_adj, set_session_nice, use_idle_cpu_only
from sidestream.worker import child, wire
from sidestream.worker.job_log import JobLog, observed
from sidestream.worker.slots import Slots
from sidestream.worker.wire import PACKET

log = logging.getLogger(__name__)

FAMILY = "SIDESTREAM_FAMILY"
"""Environment variable by which what a child started is recognised after everybody above it was killed."""
FAILURE_MOST = 4000
"""Longest reason, in characters, why the application cannot be loaded."""
HOOK_SECONDS = 30
"""Time limit, in seconds, for a process that calls failure hooks."""
HOOK_PATIENCE = 3.0
"""Seconds for which the zygote, when the worker stops, waits for that process."""
HOOK_SKIPPED = {"action": "hook_skipped"}
MOST_FAILURES = 1000
"""Maximum number of failed jobs in one such process."""
OOM_SCORE = 500
"""Children are preferred by the OOM killer over everything that would take more down with it."""


LOAD_PAUSE = 1.0
"""Seconds after which an application that cannot be loaded yet is tried again."""


class Orders(NamedTuple):
    """What a supervisor wants of its zygote."""

    worker: str
    slots: int
    nice: int
    idle_cpu_only: bool
    max_jobs: int | None
    max_memory: int | None


def facts_to_wire(facts: ActionFacts) -> tuple[object, ...]:
    """Return the plain values of ``facts``."""
    # Exceptions are met, and their policies applied, in the child; classes do not travel.
    return (facts.name, facts.tag, facts.hard_limit, asdict(replace(facts.retry, by_exception={})), facts.queue)


def facts_from_wire(plain: Any) -> ActionFacts:
    """Return what :func:`facts_to_wire` took apart."""
    name, action_tag, hard_limit, retry, queue = plain
    return ActionFacts(name, action_tag, hard_limit, RetryPolicy(**retry), queue)


class Zygote:
    """The loop of the zygote process."""

    def __init__(self, control: socket.socket, slots: Slots, make: Callable[[], Executor], orders: Orders) -> None:
        self._control = control
        self._slots = slots
        self._make = make
        self._executor: Executor
        self._orders = orders
        self._children: set[int] = set()
        #: Failures to report to the application, and the process that reports earlier ones.
        self._failures: list[JobFailure] = []
        self._hook = 0

    def run(self) -> None:
        """Load, then serve until the supervisor ends."""
        try:
            self._executor = self._make()
            facts = self._load()
        except SidestreamError as error:
            if isinstance(error, ApplicationError):
                log.error("Loading the application failed.", exc_info=error.__cause__, extra={"action": "load_failed"})
            wire.send(self._control, ("failed", str(error)[:FAILURE_MOST]))
            return
        if facts is None:
            return
        child.flush_stdout()  # otherwise each child would print the same part of a line
        # Once it is loaded: a worker is to be ready soon. What only uses an idle processor is as nice as can be.
        set_session_nice(19 if self._orders.idle_cpu_only else self._orders.nice)
        for some in wire.chunks(facts, wire.ACTIONS_MOST):
            wire.send(self._control, ("actions", [facts_to_wire(f) for f in some]))
        wire.send(self._control, ("ready",))
        wake, woken = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)  # one byte in it is enough
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        with wake, woken, selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            try:
                while self._step(selector, woken):
                    pass
            finally:
                signal.set_wakeup_fd(-1)  # before its socket is closed: children that die now raise signals
                self._kill_children()
                self._finish_hooks()

    def _load(self) -> Sequence[ActionFacts] | None:
        """Load the application once that is possible; None when the supervisor ends first."""
        logged = ""
        while True:
            try:
                return self._executor.load()
            except ApplicationNotReady as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning("%s", logged, extra={"action": "load_waits"})
            if select.select([self._control], [], [], LOAD_PAUSE)[0]:
                return None  # before any request for children, this can only be the end

    def _step(self, selector: selectors.BaseSelector, woken: socket.socket) -> bool:
        for key, _ in selector.select():
            if key.fileobj is woken:
                woken.recv(4096)
                self._reap()
            elif not self._serve():
                return False
        return True

    def _serve(self) -> bool:
        """Carry out one request; return False when the supervisor has ended."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET, 1)
        except ConnectionResetError:
            return False  # it died with a message of ours unread
        if not packet:
            return False
        if not descriptors:
            self._failed(JobFailure(*msgpack.unpackb(packet)))
            return True
        slot = int(packet)
        with socket.socket(fileno=descriptors[0]) as end:
            pid = self._fork("child", lambda: self._be_child(end, slot))
        self._children.add(pid)
        crash_point("zygote.forked")
        self._tell(("forked", slot, pid))
        return True

    def _fork(self, what: str, run: Callable[[], None]) -> int:
        """Fork a process that calls ``run``, and never returns to the loop, whose end kills the other children."""
        zygote = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            self._begin(zygote)
            run()
        except BaseException:
            log.exception("The %s failed.", what, extra={"action": f"{what.replace(' ', '_')}_failed"})
        finally:
            try:
                logging.shutdown()
                child.flush_stdout()
            finally:
                os._exit(0)

    def _be_child(self, end: socket.socket, slot: int) -> None:
        set_oom_score_adj(OOM_SCORE)
        limits = child.ChildLimits(self._orders.max_jobs, self._orders.max_memory)
        child.Child(end, self._executor, self._slots, slot, limits).run()

    def _begin(self, zygote: int) -> None:
        """Become a process that runs the application's code, after the fork."""
        die_with_parent(zygote)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        # A terminal's Ctrl-C goes to the supervisor, which decides what happens to running jobs.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        set_nice(self._orders.nice)
        if self._orders.idle_cpu_only:
            use_idle_cpu_only()
        self._control.close()

    def _failed(self, failure: JobFailure) -> None:
        """Tell the application of it, in a process that may take its time, or die of it."""
        if not observers and not self._executor.has_failure_hooks:
            return
        if len(self._failures) >= MOST_FAILURES:
            log.warning(
                "Failure hooks were not called for job %s: %s others wait.",
                failure.id,
                MOST_FAILURES,
                extra=HOOK_SKIPPED,
            )
            return
        self._failures.append(failure)
        self._start_hooks()

    def _start_hooks(self) -> None:
        if self._hook or not self._failures:
            return
        failures, self._failures = self._failures, []
        self._hook = self._fork("failure hook", lambda: self._call_hooks(failures))

    def _call_hooks(self, failures: list[JobFailure]) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(HOOK_SECONDS)
        mark_records()
        for failure in failures:
            set_job(failure.id, failure.action)
            self._executor.job_failed(failure)
            for observer in observers:
                observed(observer.job_failed, failure)
        JobLog().close()

    def _hooks_ended(self, status: int) -> None:
        if status:
            log.warning(
                "The process of the failure hooks was ended by signal %s; it had %s s.",
                status & 0x7F,
                HOOK_SECONDS,
                extra={"action": "failure_hook_ended"},
            )
        self._hook = 0
        self._start_hooks()

    def _finish_hooks(self) -> None:
        """Give the failure hooks the time that the supervisor gives us."""
        deadline = time.monotonic() + HOOK_PATIENCE
        while self._hook and time.monotonic() < deadline:
            pid, status = os.waitpid(self._hook, os.WNOHANG)
            if pid:
                self._hooks_ended(status)
            else:
                time.sleep(0.02)

    def _reap(self) -> None:
        while self._children or self._hook:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._hook:
                self._hooks_ended(status)
            elif pid in self._children:
                self._children.discard(pid)
                kill_group(pid)
                self._tell(("exited", pid, status))

    def _tell(self, message: tuple[object, ...]) -> None:
        try:
            wire.send(self._control, message)
        except (BrokenPipeError, ConnectionResetError):
            log.info("The supervisor has ended; the zygote ends.", extra={"action": "zygote_orphaned"})

    def _kill_children(self) -> None:
        for pid in self._children:
            kill_group(pid)


def kill_group(leader: int) -> None:
    """Kill the process group that the child ``leader`` led, if anything of it is left."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nothing is left of it, or only what changed its user and is not ours to end


def serve(control: socket.socket, slots_descriptor: int, orders: Orders, make: Callable[[], Executor]) -> None:
    """Run the zygote of ``orders`` over inherited descriptors, with the executor of ``make``."""
    os.environ[FAMILY] = orders.worker
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)  # the supervisor decides; its death is seen as end of file
    slots = Slots(slots_descriptor, orders.slots)
    Zygote(control, slots, make, orders).run()
