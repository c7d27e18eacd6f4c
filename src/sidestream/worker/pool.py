"""Start, stop and kill the zygote and its children, and signal their ends by descriptors."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import astuple

import msgpack

from sidestream.job.observer import JobFailure
from sidestream.worker import wire
from sidestream.worker.slots import Slots
from sidestream.worker.state import ChildState, KillReason, WorkerState
from sidestream.worker.zygote import kill_group

log = logging.getLogger(__name__)


class ProcessPool:
    """The processes of one worker. Call every method under the state's lock."""

    def __init__(
        self, state: WorkerState, slots: Slots, slots_descriptor: int, command: Sequence[str], orders: bytes
    ) -> None:
        self._state = state
        self._slots = slots
        self._slots_descriptor = slots_descriptor
        self._command = command
        self._orders = orders
        self._process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None
        #: Zygotes whose application has changed. They fork no more children, and running children finish their job.
        self._outdated: dict[socket.socket, subprocess.Popen[bytes]] = {}
        #: Whether the zygote has loaded the application and can fork children.
        self.ready = False

    def start_zygote(self) -> socket.socket:
        """Start a zygote and return its control socket."""
        ours, theirs = wire.pair()
        descriptors = (theirs.fileno(), self._slots_descriptor)
        self._process = subprocess.Popen(
            [*self._command, *(str(number) for number in descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            # The kernel compares niceness within sessions (zygote.py).
            start_new_session=True,
        )
        theirs.close()
        ours.send(self._orders)
        self.control = ours
        self.ready = False
        return ours

    def renew(self, control: socket.socket | None) -> None:
        """Replace the zygote of ``control``, because its application has changed."""
        if control is None or control is not self.control or self._process is None:
            return
        log.info("The application has changed and is loaded again.", extra={"action": "zygote_renewed"})
        self._outdated[control] = self._process
        self.control, self._process, self.ready = None, None, False
        for child in self._state.children.values():
            if child.control is control:
                self.retire(child)  # it finishes its running job first

    def outdated(self, waited_for: Sequence[ChildState]) -> list[socket.socket]:
        """Return the control sockets of replaced zygotes without children and ``waited_for``."""
        needed = {child.control for child in [*self._state.children.values(), *waited_for]}
        return [control for control in self._outdated if control not in needed]

    def zygote_gone(self, control: socket.socket) -> None:
        """Handle the end of a zygote: kill its children and the processes that they started."""
        control.close()
        process = self._outdated.pop(control, None)
        if control is self.control:
            process, self._process, self.control, self.ready = self._process, None, None, False
        for child in self._state.children.values():
            if child.control is not control:
                continue
            child.orphaned = True
            child.kill_reason = child.kill_reason or KillReason.ZYGOTE
            if child.pid:
                kill_group(child.pid)
        if process is not None:
            process.kill()
            process.wait()

    def spawn(self, slot: int) -> ChildState | None:
        """Request a child in ``slot`` from the zygote; None if the zygote has ended."""
        if self.control is None:
            return None
        self._slots.clear(slot)
        ours, theirs = wire.pair()
        with theirs:
            try:
                socket.send_fds(self.control, [str(slot).encode()], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        child = ChildState(slot, ours, self.control)
        self._state.children[slot] = child
        return child

    def report_failure(self, failure: JobFailure) -> None:
        """Let the zygote call the application's failure hooks, if there are any."""
        if self.control is None or not self.ready:
            problem = "the application is not loaded"
        else:
            try:
                self.control.send(msgpack.packb(astuple(failure)), socket.MSG_DONTWAIT)
            except OSError as error:
                problem = str(error)
            else:
                return
        log.warning(
            "Failure hooks were not called for job %s: %s.", failure.id, problem, extra={"action": "hook_skipped"}
        )

    def forked(self, child: ChildState, pid: int) -> bool:
        """Record the child's pid; return False if the child has already ended."""
        child.pid = pid
        try:
            child.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        return True

    def kill(self, child: ChildState, kill_reason: KillReason, reference: bytes | None = None) -> None:
        """Kill a child and its processes, because of the job ``reference`` if given."""
        if child.kill_reason is None:
            child.kill_reason, child.killed_for = kill_reason, reference
        if child.pid:
            kill_group(child.pid)

    def retire(self, child: ChildState) -> None:
        """Let a child end when it is idle and reads end of file."""
        child.retiring = True
        with contextlib.suppress(OSError):
            child.end.shutdown(socket.SHUT_WR)

    def forget(self, child: ChildState) -> None:
        """Close the descriptors of a child that has ended."""
        child.end.close()
        if child.pidfd >= 0:
            os.close(child.pidfd)
            child.pidfd = -1
        if self._state.children.get(child.slot) is child:
            del self._state.children[child.slot]

    def stop(self, patience: float) -> None:
        """End the zygotes and all children; kill them after ``patience`` seconds."""
        for control in list(self._outdated):
            self.zygote_gone(control)
        if self.control is not None:
            self.control.close()
            self.control = None
        if self._process is not None:
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                log.warning("The zygote did not end and is killed.", extra={"action": "zygote_killed"})
                self._process.kill()
                self._process.wait()
            self._process = None
