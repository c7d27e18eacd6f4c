"""The supervisor: one a host; it never imports job code.

1. dispatcher thread: claims for free children and hands out batches;
2. collector thread: reads the messages of children and zygote, notices their ends, enforces limits;
3. settler thread: writes outcomes, PostgreSQL first, then the broker;
4. lease thread: renews, announces, states holdings anew after Redis was emptied;
5. the main thread waits for signals: SIGTERM or SIGINT drains (no more claims, running jobs end), a second one hands
   back what runs. SIGUSR1 makes it quiet (no more claims, running jobs end, it stays), a second one lets it go on; so
   does whoever makes or removes the file ``quiet`` in its folder.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import psycopg

from sidestream.broker.protocol import Broker, Delivery
from sidestream.errors import BrokerError, SettingsError, SidestreamError
from sidestream.job.observer import JobFailure
from sidestream.job.reference import Reference
from sidestream.worker.collector import Collector
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.job_log import failed_line
from sidestream.worker.lease import LeaseRenewer
from sidestream.worker.options import WorkerOptions
from sidestream.worker.outcome_writer import OutcomeWriter
from sidestream.worker.pool import ProcessPool
from sidestream.worker.run_dir import is_quiet, set_quiet
from sidestream.worker.settler import Settler
from sidestream.worker.slots import Slots
from sidestream.worker.state import KillReason, WorkerState
from sidestream.worker.timeout_monitor import TimeoutMonitor

log = logging.getLogger(__name__)

QUIET_EVERY = 0.5
"""Seconds between two checks for a request to be quiet."""
STOP_PATIENCE = 5.0
"""Seconds that threads and processes get to end by themselves at the very end."""


class Supervisor:
    """Runs a zygote and its children over one broker."""

    def __init__(
        self,
        options: WorkerOptions,
        broker: Broker,
        *,
        zygote_command: Sequence[str],
        zygote_orders: bytes,
        connect: Callable[[], psycopg.Connection[Any]] | None,
        probe: Callable[[], object] | None = None,
        on_stale_generation: Callable[[], None] | None = None,
    ) -> None:
        self._options = options
        self._broker = broker
        self._also_on_stale_generation = on_stale_generation
        self._state = WorkerState(options)
        if options.after_unclean_end:
            self._state.recovery_until = time.monotonic() + options.recovery_period
        self._slots, self._slots_descriptor = Slots.create(options.run_folder / "slots", options.children)
        self._pool = ProcessPool(self._state, self._slots, self._slots_descriptor, zygote_command, zygote_orders)
        self._outcome_writer = OutcomeWriter(self._state, connect, self.failed)
        self._settler = Settler(
            self._state,
            broker,
            self._outcome_writer,
            send_alone=lambda delivery, child: self._dispatcher.send_alone(delivery, child),
            on_stale_generation=self._on_stale_generation,
        )
        self._dispatcher = Dispatcher(
            self._state,
            broker,
            self._slots,
            prepare_alone=self._settler.prepare_alone,
            end_alone=self._settler.end_alone,
            release=self._settler.release,
            on_stale_generation=self._on_stale_generation,
        )
        timeout_monitor = TimeoutMonitor(self._state, self._pool, self._slots, self._settler)
        self._leases = LeaseRenewer(self._state, broker, self._pool, self._slots, probe=probe)
        self._collector = Collector(
            self._state,
            self._pool,
            self._slots,
            self._dispatcher,
            self._settler,
            timeout_monitor,
            on_actions=self._loaded,
        )
        self._signals = 0
        self._replace = False
        self._ended = False
        self._signalled = threading.Event()
        #: The first zygote has loaded the application.
        self._is_loaded = False
        self._threads = {
            name: threading.Thread(target=self._guard, args=(name, target), name=f"sidestream-{name}", daemon=True)
            for name, target in (
                ("settler", self._settler.run),
                ("collector", self._collector.run),
                ("leases", self._leases.run),
                ("dispatcher", self._dispatcher.run),
            )
        }

    def run(self, *, on_loaded: Callable[[], None] = lambda: None) -> None:
        """Load the application, call ``on_loaded``, then work until SIGTERM or SIGINT.

        Raises :class:`SettingsError` when the application cannot be loaded.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_quiet)
        try:
            self._threads["collector"].start()
            while not (self._is_asked_to_end() or self._is_loaded):
                self._signalled.wait(QUIET_EVERY)
                self._signalled.clear()
            if not self._is_asked_to_end():
                on_loaded()
                for name in ("settler", "leases", "dispatcher"):
                    self._threads[name].start()
            while not self._is_asked_to_end():
                self._signalled.wait(QUIET_EVERY)
                self._signalled.clear()
                self._check_quiet()
        finally:
            self.stop()
        if self._collector.failure is not None:
            raise SettingsError(self._collector.failure)
        if self._state.fault is not None:
            raise SidestreamError(f"The worker ended because {self._state.fault}; this is a fault in Sidestream.")

    def replace(self) -> None:
        """Drain, so that another supervisor in this process continues with a new identity."""
        if not self._replace:
            log.warning(
                "This database was adopted; the worker finishes its jobs and starts again.", extra={"action": "adopted"}
            )
        self._replace = True
        self._signalled.set()

    @property
    def replaced(self) -> bool:
        """Return whether it ended because of :meth:`replace`, without a signal."""
        if not self._replace or self._signals:
            return False
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return not self._signals

    def _guard(self, name: str, target: Callable[[], None]) -> None:
        """Run a thread; a fault in one ends the worker, which a service manager starts again."""
        try:
            target()
        except Exception as error:  # whatever it is, the leases must not be renewed for ever without it
            log.exception("The %s thread failed.", name, extra={"action": "thread_failed"})
            self._state.fault = f"its {name} thread failed ({type(error).__name__}: {error})"
            self._signalled.set()
        if name == "collector":
            self._ended = True
            self._signalled.set()

    def _is_asked_to_end(self) -> bool:
        return bool(self._signals or self._ended or self._replace or self._state.fault)

    def _join(self, name: str) -> None:
        if self._threads[name].ident is not None:
            self._threads[name].join(STOP_PATIENCE)

    def stop(self) -> None:
        """Claim no more jobs; wait up to ``drain_timeout``, or a second signal, for running jobs."""
        if self._is_loaded:
            log.info("Draining: no more jobs are claimed, running ones end.", extra={"action": "drain"})
        with self._state.changed:
            self._state.draining = True
            self._dispatcher.release_waiting()
            self._state.changed.notify_all()
        deadline = time.monotonic() + self._options.drain_timeout
        with self._state.changed:
            while self._busy() and self._signals < 2 and time.monotonic() < deadline and self._collector_works():
                self._state.changed.wait(0.1)
            left = self._busy()
            if left:
                log.warning("%s running jobs are stopped and released.", left, extra={"action": "drain_release"})
            for child in list(self._state.children.values()):
                self._pool.kill(child, KillReason.STOPPING)
            while self._busy() and time.monotonic() < deadline + STOP_PATIENCE and self._collector_works():
                self._state.changed.wait(0.1)
        self._join("dispatcher")
        with self._state.lock:
            self._state.stopped = True
        self._join("collector")
        with self._state.lock:
            # What the last claim brought while it was blocked, and what children left that ended since.
            self._dispatcher.release_waiting()
        self._settler.stop()
        self._join("settler")
        self._leases.stop()
        self._join("leases")
        try:
            self._broker.withdraw(self._options.worker)
        except BrokerError as error:
            log.info("The announcement could not be withdrawn and runs out: %s", error, extra={"action": "withdraw"})
        with self._state.lock:
            self._pool.stop(STOP_PATIENCE)
        self._collector.close()
        if not self._threads["settler"].is_alive():  # else it waits for PostgreSQL, and ends with this process
            self._outcome_writer.close()

    def action_names(self) -> list[str]:
        """Return the names of the actions that the application declares; none before it is loaded."""
        with self._state.lock:
            return sorted(facts.name for facts in self._state.actions.values())

    def writes(self) -> bool:
        """Return whether PostgreSQL accepts what this worker writes."""
        return not self._state.unwritten

    def failed(self, failure: JobFailure) -> None:
        """Log a failed job and call the application's failure hooks."""
        failed_line(failure)
        with self._state.lock:
            self._pool.report_failure(failure)

    def delivery_failed(self, delivery: Delivery, attempts: int, error: str) -> None:
        """The job of a delivery that was taken over has failed."""
        with self._state.lock:
            failure = self._outcome_writer.failure_of(delivery, attempts, error)
        self.failed(failure)

    def stop_running(self, job_id: int) -> bool:
        """Kill the child that runs the cancelled row ``job_id``; False if none here does."""
        with self._state.lock:
            for child in self._state.children.values():
                running = self._slots.read(child.slot)
                if not running.running or running.batch != child.batch:
                    continue
                for delivery in child.deliveries[child.reported :]:
                    if running.reference == delivery.reference and Reference.unpack(delivery.reference).id == job_id:
                        self._pool.kill(child, KillReason.CANCELLED, delivery.reference)
                        return True
        return False

    def _loaded(self) -> None:
        self._is_loaded = True
        self._signalled.set()
        self._leases.announce_now()

    def _on_stale_generation(self) -> None:
        self._leases.on_stale_generation()
        if self._also_on_stale_generation is not None:
            self._also_on_stale_generation()

    def _busy(self) -> int:
        return self._state.running()

    def _collector_works(self) -> bool:
        return self._threads["collector"].is_alive() and self._state.fault is None

    def _check_quiet(self) -> None:
        quiet = is_quiet(self._options.run_folder)
        with self._state.changed:
            if quiet == self._state.quiet:
                return
            self._state.quiet = quiet
            self._dispatcher.hand_out()
            self._state.changed.notify_all()
        self._leases.announce_now()
        if quiet:
            log.info("Quiet: no more jobs are claimed, running ones go on.", extra={"action": "quiet"})
        else:
            log.info("No longer quiet: jobs are claimed again.", extra={"action": "resumed"})

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._signalled.set()

    def _on_quiet(self, signum: int, frame: FrameType | None) -> None:
        set_quiet(self._options.run_folder, quiet=not is_quiet(self._options.run_folder))
        self._signalled.set()
