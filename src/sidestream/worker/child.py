"""Run batches of jobs in a child, one job at a time, without a Redis connection.

It dies with the zygote (parent death signal) and with the supervisor (end of file on its socket). What it started dies
with it: it leads a process group of its own, which the supervisor, or the zygote in its place, kills.
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from sidestream.broker.protocol import Publication
from sidestream.crashpoints import crash_point
from sidestream.executors.protocol import Acquired, Executor
from sidestream.job.outcome import Done
from sidestream.job.reference import action_of
from sidestream.logs import mark_records
from sidestream.worker import wire
from sidestream.worker.job_log import JobLog
from sidestream.worker.runner import Runner
from sidestream.worker.slots import Slots

log = logging.getLogger(__name__)

FLUSH_AFTER = 0.01
"""A finished job waits at most this long, in seconds, for its neighbours before it is reported."""
MEMORY_EVERY = 64
"""Jobs between two looks at the child's memory."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """The conditions under which a child asks to be replaced."""

    #: Jobs; None means never.
    max_jobs: int | None
    #: Peak resident memory in bytes; None means never.
    max_memory: int | None


class Child:
    """The loop of one child process."""

    def __init__(self, end: socket.socket, executor: Executor, slots: Slots, slot: int, limits: ChildLimits) -> None:
        self._end = end
        self._executor = executor
        self._slots = slots
        self._slot = slot
        self._limits = limits
        self._runner = Runner(executor)
        self._log = JobLog()
        self._reference = b""
        self._jobs = 0
        self._retiring = False
        self._attempts_seen = -1
        self._job_reports: list[wire.JobReport] = []
        self._times: dict[bytes, tuple[int, int]] = {}
        self._follow_ups: list[Publication] = []
        executor.on_backend = lambda pid: slots.backend(slot, pid)
        executor.on_lock_backend = lambda pid: slots.guard(slot, pid)

    def run(self) -> None:
        """Serve batches until the supervisor closes the socket."""
        mark_records()
        self._runner.soft_limit.install()
        self._executor.begin(self._slot)
        try:
            while (message := wire.receive(self._end)) is not None:
                crash_point("child.received")
                self._batch(wire.read_batch(message))
        except (BrokenPipeError, ConnectionResetError):
            log.info("The supervisor has ended; this child ends.", extra={"action": "child_orphaned"})
        finally:
            self._log.close()
            self._executor.close()

    def _batch(self, batch: wire.Batch) -> None:
        slots, slot = self._slots, self._slot
        flushed = time.monotonic()
        upto = 0
        for index, item in enumerate(batch.items):
            started = time.monotonic()
            if upto and started - flushed > FLUSH_AFTER:
                self._report(batch.number, upto, idle=False)
                flushed = started
            slots.start(slot, index, started, item.reference)
            # The limit is read after the position was written: the supervisor does the opposite (recall).
            if index >= slots.limit(slot) or self._retiring or self._executor.stale:
                slots.stop(slot)
                break
            if self._one(index, item, started):
                self._report(batch.number, index + 1, idle=False)
            upto = index + 1
        flush_stdout()  # an idle child may be killed at any time
        self._report(batch.number, upto, idle=True)
        crash_point("child.reported")

    def _one(self, index: int, item: wire.Item, started: float) -> bool:
        """Run one job; return whether to report its outcome at once (everything but done)."""
        self._attempts_seen, self._reference = -1, item.reference
        outcome, acquired = self._runner.run(item, self._acquired)
        self._slots.stop(self._slot)
        seconds = time.monotonic() - started
        self._count(item.reference, seconds)
        self._log.end(outcome, seconds, self._runner.error)
        if isinstance(outcome, Done):
            if acquired is not None and acquired.follow_ups:
                self._follow_ups.extend(acquired.follow_ups)
            return False
        self._job_reports.append(wire.JobReport(index, outcome, self._attempts_seen))
        return True

    def _acquired(self, acquired: Acquired) -> None:
        self._attempts_seen = acquired.attempts
        self._slots.acquired(self._slot, acquired.attempts)
        self._log.begin(self._reference, acquired)

    def _count(self, reference: bytes, seconds: float) -> None:
        action = action_of(reference)
        jobs, micros = self._times.get(action, (0, 0))
        self._times[action] = (jobs + 1, micros + int(seconds * 1_000_000))
        self._jobs += 1
        limits = self._limits
        if limits.max_jobs is not None and self._jobs >= limits.max_jobs:
            self._retiring = True
        if limits.max_memory is not None and self._jobs % MEMORY_EVERY == 0:
            # ru_maxrss is KiB on Linux: https://man7.org/linux/man-pages/man2/getrusage.2.html
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self._retiring = self._retiring or peak > limits.max_memory

    def _report(self, number: int, upto: int, *, idle: bool) -> None:
        stale = self._executor.stale
        retiring = (self._retiring or stale) and idle
        report = wire.Report(number, upto, idle, self._job_reports, self._times, self._follow_ups, retiring, stale)
        wire.send_report(self._end, report)
        self._job_reports, self._times, self._follow_ups = [], {}, []


def flush_stdout() -> None:
    """Write out the part of a line that was printed, if there is somebody to read it."""
    with suppress(OSError, ValueError):
        print(end="", flush=True)  # noqa: T201  # there may be no stdout
