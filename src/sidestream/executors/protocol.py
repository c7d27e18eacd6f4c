"""Define the executor protocol: load the application, and own the job's transaction.

The zygote calls :meth:`Executor.load` and forks; each child calls :meth:`Executor.begin`, then for each job::

    acquired = executor.acquire(reference, payload)  # a Verdict says why it cannot run now
    executor.run(acquired)                           # the action
    executor.commit(acquired)                        # effect and "done" in one commit
    executor.reset()                                 # after any error: roll back and discard the job
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sidestream.broker.protocol import Publication
from sidestream.errors import StoreUnavailable
from sidestream.job.job import DEFAULT_QUEUE
from sidestream.job.observer import JobFailure
from sidestream.job.outcome import Done, Fail, Release
from sidestream.job.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class ActionFacts:
    """What the supervisor, which never imports application code, knows about an action."""

    name: str
    tag: bytes
    hard_limit: float | None
    retry: RetryPolicy
    #: The queue of its jobs that name none.
    queue: str = DEFAULT_QUEUE


@dataclass(slots=True)
class Acquired:
    """A job that this child holds: its row is locked and its arguments are read."""

    #: The action's name.
    action: str
    #: Failed attempts and crashes so far; every write about the job compares it.
    attempts: int
    #: Seconds until the soft limit; None means never.
    soft_limit: float | None
    #: The policy for failed attempts.
    retry: RetryPolicy
    #: Private to the executor: function, arguments, context.
    body: Any
    #: Attempts that a manual retry forgave; the retry policy counts the others.
    forgiven: int = 0
    #: The queue that it came from.
    queue: str = DEFAULT_QUEUE
    #: The jobs that the action enqueued in its transaction.
    follow_ups: list[Publication] = field(default_factory=list)


Verdict = Done | Fail | Release
"""Why a job does not run now: it has ended (Done: settle it), it can never run (Fail), or it must wait (Release)."""


class Conflict(Exception):
    """Raised by acquire, run and commit: PostgreSQL asks for a retry (40001, 40P01, 55P03)."""


class ApplicationNotReady(Exception):
    """Raised by load: another process is changing the application; call load again soon."""


class Uncertain(Exception):
    """Raised by commit: its outcome is unknown; :meth:`Executor.verify` determines it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        #: As :attr:`SessionLost.code`.
        self.code = code


class SessionLost(StoreUnavailable):
    """Raised by run and commit: the session of an acquired job ended, perhaps because of it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        #: The SQLSTATE that PostgreSQL gave as the reason; "" when it gave none.
        self.code = code


class ApplicationChanged(BaseException):
    """Raised by run: the application has changed, so the job is released and starts again later.

    Not an :class:`Exception`, because the action's own ``commit()`` raises it, and ``except Exception`` in an action
    must not catch it.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(str(release.reason))
        self.release = release


_MESSAGE = "sidestream_message"
_MESSAGE_LIMIT = 16_000


def set_message(error: BaseException, message: str) -> None:
    """Set the message that people read instead of the exception's own text."""
    setattr(error, _MESSAGE, message)


def message_of(error: BaseException) -> str:
    """Return the message of an exception for people, in one line, whatever its ``__str__`` does."""
    try:
        text = str(getattr(error, _MESSAGE, error))
    except BaseException as fault:  # noqa: BLE001  # a method of a foreign class
        text = f"its text cannot be read ({type(fault).__name__})"
    return " ".join(text[:_MESSAGE_LIMIT].split())


class Executor(Protocol):
    """Runs jobs. Each child has one instance and uses it in one thread."""

    #: The application has changed since :meth:`load`; this process and its zygote must be replaced.
    stale: bool
    #: Called with the pid of the PostgreSQL backend whenever the executor connects, and 0 when it disconnects.
    on_backend: Callable[[int], None]
    #: The same for the second backend that holds the job's locks, if the executor has one.
    on_lock_backend: Callable[[int], None]

    def load(self) -> Sequence[ActionFacts]:
        """Load the application in the zygote.

        Raises :class:`~sidestream.errors.SettingsError` if it cannot be loaded, and :class:`ApplicationNotReady` if it
        cannot be loaded yet; the zygote then calls this again.
        """
        ...

    def begin(self, slot: int) -> None:
        """Prepare to run jobs in the child ``slot``. Nothing may be connected before the fork."""
        ...

    def acquire(self, reference: bytes, payload: bytes | None, *, attempts: int, run_alone: bool) -> Acquired | Verdict:
        """Lock the row and read it (or read the payload of a direct job).

        ``attempts`` is used for direct jobs. A suspect (its host died repeatedly) is released unless ``run_alone``.
        Raises :class:`Conflict` and :class:`~sidestream.errors.StoreUnavailable`.
        """
        ...

    def run(self, acquired: Acquired) -> None:
        """Call the action and let its exceptions propagate. Raises :class:`ApplicationChanged`."""
        ...

    def commit(self, acquired: Acquired) -> None:
        """Write "done" and commit. Raises Conflict, Uncertain, or the error of a hook."""
        ...

    def verify(self, acquired: Acquired) -> bool:
        """End the old session after Uncertain, and return whether the unlocked row has ended."""
        ...

    def reset(self) -> None:
        """Roll back and discard the job; reconnect when the connection is broken. Never raises."""
        ...

    def release_locks(self, acquired: Acquired) -> None:
        """Free the locks that the job held beyond its transaction; called after every attempt."""
        ...

    @property
    def has_failure_hooks(self) -> bool:
        """Whether the application has hooks for :meth:`job_failed`."""
        ...

    def job_failed(self, failure: JobFailure) -> None:
        """Call the application's failure hooks for a failed row, in a process that runs no jobs."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...
