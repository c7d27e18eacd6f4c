"""Log one line for each attempt in the process that ran it, and call observers.

The logger is ``sidestream.jobs``; ``quiet_jobs`` silences it. Each record says in its extras what its text says.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from sidestream.executors.protocol import Acquired
from sidestream.job.job import DEFAULT_QUEUE
from sidestream.job.observer import JobFailure, JobRun, observers
from sidestream.job.outcome import Done, Fail, Outcome, Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.logs import JOBS, set_job
from sidestream.worker.outcome import detail_of

log = logging.getLogger(__name__)
_jobs = logging.getLogger(JOBS)


class JobLog:
    """Tells of the attempts that one child makes."""

    def __init__(self) -> None:
        self._run: JobRun | None = None
        self._observed = ExitStack()

    def begin(self, reference: bytes, acquired: Acquired) -> None:
        """Begin an attempt: mark the log lines of its code and call the observers."""
        self._observed.close()  # of the try before it, which met a conflict
        self._run = JobRun(job_id(Reference.unpack(reference)), acquired.action, acquired.queue, acquired.attempts + 1)
        set_job(self._run.id, self._run.action)
        for observer in observers:
            try:
                self._observed.enter_context(observer.attempt(self._run))
            except Exception:
                log.exception("An observer of jobs failed.", extra={"action": "observer_failed"})

    def end(self, outcome: Outcome, seconds: float, error: BaseException | None) -> None:
        """The attempt ended, after ``seconds``, and raised ``error`` if any."""
        run, self._run = self._run, None
        if run is None:
            return  # it did not begin: the reason of its release says why
        try:
            self._tell(run, outcome, seconds, error)
            if isinstance(outcome, Retry | Fail) and error is not None:
                for observer in observers:
                    observed(observer.attempt_failed, run, error, final=isinstance(outcome, Fail))
        finally:
            self._observed.close()
            set_job(None, None)

    def close(self) -> None:
        """This process ends."""
        for observer in observers:
            observed(observer.close)

    @staticmethod
    def _tell(run: JobRun, outcome: Outcome, seconds: float, error: BaseException | None) -> None:
        match outcome:
            case Done():
                attempt_line(logging.INFO, run, "done", seconds)
            case Retry(delay):
                attempt_line(logging.WARNING, run, "failed attempt", seconds, f"; again in {delay:.3g} s", error)
            case Fail():
                attempt_line(logging.WARNING, run, "failed attempt", seconds, "; not tried again", error)
            case Release(Reason(ReasonCode.SNOOZED, params)):
                more = f" for {params['seconds']} s: {params['message']}"
                attempt_line(logging.INFO, run, "snoozed", seconds, more)
            case Release(reason):
                attempt_line(logging.INFO, run, "released", seconds, f": {reason}")


def attempt_line(
    level: int, run: JobRun, outcome: str, seconds: float | None, more: str = "", error: BaseException | None = None
) -> None:
    """Log how an attempt ended."""
    if not _jobs.isEnabledFor(level):
        return
    took = "" if seconds is None else f" after {seconds:.3f} s"
    text = f"Job {run.id} {run.action}: {outcome}{took} (attempt {run.attempt}, queue {run.queue}){more}"
    facts: dict[str, Any] = {
        "action": "job_" + outcome.replace(" ", "_"),
        "job_id": run.id,
        "job_action": run.action,
        "queue": run.queue,
        "attempt": run.attempt,
        "outcome": outcome,
    }
    if seconds is not None:
        facts["duration"] = round(seconds, 6)
    trace = None if error is None else (type(error), error, error.__traceback__)
    # Made here: Logger.log would walk the stack for the line of code, which is this one, for every job.
    record = _jobs.makeRecord(JOBS, level, __file__, 0, text, (), trace, "attempt_line", facts)
    if error is not None:
        record.exc_text = detail_of(error).rstrip()  # without what looks like a secret
    _jobs.handle(record)


def failed_line(failure: JobFailure) -> None:
    """Log that a job ended as failed."""
    _jobs.error(
        "Job %s %s has failed (failed attempts %s, queue %s): %s",
        failure.id,
        failure.action,
        failure.attempts,
        failure.queue,
        failure.error,
        extra={
            "action": "job_failed",
            "job_id": failure.id,
            "job_action": failure.action,
            "queue": failure.queue,
            "attempt": failure.attempts,
            "outcome": "failed",
            "error": failure.error,
        },
    )


def observed(call: Any, *arguments: Any, **named: Any) -> None:
    """Call an observer or a hook of the application, and log its exceptions."""
    try:
        call(*arguments, **named)
    except Exception:
        log.exception("An observer of jobs failed.", extra={"action": "observer_failed"})


def job_id(reference: Reference) -> int | str:
    """Return the id by which people know the job."""
    return reference.id if reference.uuid is None else str(reference.uuid)


def queue_of(lane: str) -> str:
    """Return the queue whose jobs of one database wait in ``lane``."""
    return lane.partition(":")[2] or DEFAULT_QUEUE
