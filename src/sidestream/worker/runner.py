"""Run one job: acquire, run, commit, within its soft limit, with our own conflict loop.

1. acquire: the executor locks and reads the row, or says why not;
2. run: the action, under the soft limit;
3. commit: effect and "done" together;
4. a conflict with another transaction (40001, 40P01, 55P03) starts again from 1, at most three times;
5. anything else that went wrong becomes an outcome, and the executor rolls back.

Odoo's ``retrying`` is not used: it sleeps up to 30 s in the slot and commits by itself.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable
from types import FrameType

from sidestream.errors import ForeignDatabase, SoftLimitExceeded, StoreError
from sidestream.executors.protocol import Acquired, Conflict, Executor, Uncertain
from sidestream.job.outcome import Done, Outcome, Release
from sidestream.job.reason import Reason, ReasonCode
from sidestream.worker.outcome import outcome_of
from sidestream.worker.wire import Item

log = logging.getLogger(__name__)

CONFLICT_TRIES = 3
"""How often a conflicting transaction is tried before the job is released."""
CONFLICT_WAIT = 0.05
"""Longest pause, in seconds, before the next try."""


class SoftLimit:
    """Raises SoftLimitExceeded in the main thread when the time is over (SIGALRM)."""

    def __init__(self) -> None:
        self._armed = False

    def install(self) -> None:
        """Take over SIGALRM; to be called once, in the child's main thread."""
        signal.signal(signal.SIGALRM, self._ring)

    def arm(self, seconds: float | None) -> None:
        """Start the time; None means that there is no limit."""
        if seconds is not None:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        """Stop the time; an alarm that is under way does nothing from here on."""
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise SoftLimitExceeded


class Runner:
    """Runs jobs with one executor."""

    def __init__(self, executor: Executor, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._executor = executor
        self._pause = pause
        self.soft_limit = SoftLimit()
        #: What the last attempt raised.
        self.error: BaseException | None = None

    def run(self, item: Item, on_acquired: Callable[[Acquired], None]) -> tuple[Outcome, Acquired | None]:
        """Run the job once; return its outcome, and what was acquired if it was. Raises nothing."""
        self.error = None
        for attempt in range(1, CONFLICT_TRIES + 1):
            try:
                return self._once(item, on_acquired)
            except Conflict as conflict:
                log.info("A job met a conflict (try %s): %s", attempt, conflict, extra={"action": "job_conflict"})
                if attempt < CONFLICT_TRIES:
                    # Jitter: two jobs that met once should not meet again in step.
                    self._pause(random.uniform(0, CONFLICT_WAIT))
        return Release(Reason(ReasonCode.CONFLICT), None), None

    def _once(self, item: Item, on_acquired: Callable[[Acquired], None]) -> tuple[Outcome, Acquired | None]:
        executor = self._executor
        try:
            acquired = executor.acquire(item.reference, item.payload, attempts=item.attempts, run_alone=item.run_alone)
        except StoreError as error:
            executor.reset()
            # Nothing is written into a copy, not even how often its jobs were released.
            code = ReasonCode.FOREIGN if isinstance(error, ForeignDatabase) else ReasonCode.LOST
            return Release(Reason(code, {"error": str(error)}), None), None
        except Conflict:
            executor.reset()
            raise
        if not isinstance(acquired, Acquired):
            return acquired, None
        on_acquired(acquired)
        try:
            return self._carry_out(acquired), acquired
        finally:
            executor.release_locks(acquired)

    def _carry_out(self, acquired: Acquired) -> Outcome:
        executor = self._executor
        try:
            self.soft_limit.arm(acquired.soft_limit)
            try:
                executor.run(acquired)
            finally:
                self.soft_limit.disarm()
            executor.commit(acquired)
            return Done()
        except Conflict:
            executor.reset()
            raise
        except Uncertain as error:
            return self._after_lost_commit(acquired, error)
        except BaseException as error:  # noqa: BLE001  # SystemExit in an action ends the attempt, not the worker
            self.error = error
            outcome = outcome_of(error, acquired)
            executor.reset()
            return outcome

    def _after_lost_commit(self, acquired: Acquired, error: Uncertain) -> Outcome:
        """Decide only after the row was read with a waiting lock."""
        try:
            if self._executor.verify(acquired):
                return Done()
        except (StoreError, Conflict) as unknown:
            # Still unknown: the row decides at the next acquire.
            return _session_lost(error.code, unknown)
        finally:
            self._executor.reset()
        return _session_lost(error.code, error)


def _session_lost(sqlstate: str, error: Exception) -> Release:
    return Release(Reason(ReasonCode.SESSION_LOST, {"sqlstate": sqlstate, "error": str(error)}), None)
