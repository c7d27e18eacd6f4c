"""Let failure hooks and error reporting observe jobs as they run and fail."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobRun:
    """One attempt at a job, in the process that runs it."""

    #: The row's id, or the uuid of a direct job as text.
    id: int | str
    action: str
    queue: str
    #: 1 for the first attempt.
    attempt: int


@dataclass(frozen=True, slots=True)
class JobFailure:
    """A job that has ended as failed: nothing will run it again unless a person retries it."""

    #: The row's id, or the uuid of a direct job as text.
    id: int | str
    action: str
    queue: str
    #: How many attempts failed.
    attempts: int
    #: What went wrong, in one line.
    error: str
    #: The traceback of the last attempt; empty when its process was killed or crashed, or it never ran.
    traceback: str = ""


class JobObserver:
    """Observe every attempt in its process; exceptions are logged (:data:`observers`)."""

    def attempt(self, run: JobRun) -> AbstractContextManager[object]:
        """Return a context in which the attempt runs."""
        del run
        return nullcontext()

    def attempt_failed(self, run: JobRun, error: BaseException, *, final: bool) -> None:
        """Observe that the attempt raised ``error``, in its context; ``final``: the job has failed."""

    def job_failed(self, failure: JobFailure) -> None:
        """Observe a job whose row is failed, in a separate process, whatever ended the job."""

    def close(self) -> None:
        """Handle the end of the process that ran attempts or received failures."""


observers: list[JobObserver] = []
"""The observers of this process, in the order of their calls. Add yours when your module is imported."""
