"""What an executor is: it loads the application once, and owns the transaction in which a job's effect is committed.

The zygote calls :meth:`Executor.load` and forks; each child calls :meth:`Executor.begin`, then for each job::

    acquired = executor.acquire(reference, payload)      # a Verdict says why it cannot run now
    executor.run(acquired)                            # the action
    executor.commit(acquired)                         # effect and "done" in one commit
    executor.reset()                                # after anything that went wrong: roll back, forget
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
    """What a supervisor, which never imports job code, has to know of an action."""

    name: str
    tag: bytes
    hard_limit: float | None
    retry: RetryPolicy
    #: The backlog of its jobs that name none.
    queue: str = DEFAULT_QUEUE


@dataclass(slots=True)
class Acquired:
    """A job that is ours to run: its row is locked, its arguments are read."""

    #: The action's name.
    action: str
    #: Starts that failed or crashed before this one: the mark that every write about it compares.
    attempts: int
    #: Seconds until the soft limit; None means never.
    soft_limit: float | None
    #: What happens after a failure.
    retry: RetryPolicy
    #: The executor's own: function, arguments, context.
    body: Any
    #: How many of them a person's retry wrote off; the retry policy counts the others.
    forgiven: int = 0
    #: The backlog that it waited in.
    queue: str = DEFAULT_QUEUE
    #: The jobs that the action enqueued in its transaction.
    follow_ups: list[Publication] = field(default_factory=list)


Verdict = Done | Fail | Release
"""Why a job is not run now: it is over (Done: settle it), it can never run (Fail), or not yet (Release)."""


class Conflict(Exception):
    """Raised by an executor out of open, run or commit: PostgreSQL asks for another try (40001, 40P01, 55P03)."""


class NotYet(Exception):
    """Raised by load: the application cannot be loaded now, and will be once others have finished. Ask again soon."""


class Uncertain(Exception):
    """Raised out of commit: whether it was committed is unknown; :meth:`Executor.verify` finds out."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        #: As :attr:`SessionLost.code`.
        self.code = code


class SessionLost(StoreUnavailable):
    """Raised out of run or commit: the PostgreSQL session of an acquired job ended. The job may be the cause."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        #: The SQLSTATE that PostgreSQL gave as the reason; "" when the connection ended without a word.
        self.code = code


class NotNow(BaseException):
    """Raised out of run: the application changed under the job, which is handed back and begins again later.

    No :class:`Exception`, because it comes out of an action's own ``commit()``: what an action makes of errors is not
    meant for it.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(release.reason)
        self.release = release


_MESSAGE = "sidestream_message"


def set_message(error: BaseException, message: str) -> None:
    """Let people read ``message`` in place of what an exception says of itself."""
    setattr(error, _MESSAGE, message)


def message_of(error: BaseException) -> str:
    """Return what people read of an exception, in one line."""
    return " ".join(str(getattr(error, _MESSAGE, error)).split())


class Executor(Protocol):
    """Carries jobs out. One instance a child, used by one thread."""

    #: The application changed since :meth:`load`: this process, and the zygote it came from, are of no more use.
    stale: bool
    #: Called with the pid of the PostgreSQL backend whenever the executor connects, and 0 when it disconnects.
    on_backend: Callable[[int], None]
    #: The same for a second backend that holds the job's keys, where the executor has one.
    on_guard: Callable[[int], None]

    def load(self) -> Sequence[ActionFacts]:
        """Load the application, in the zygote.

        Raises :class:`~sidestream.errors.SettingsError` if it cannot, and :class:`NotYet` while it cannot; then it is
        called again.
        """
        ...

    def begin(self, slot: int) -> None:
        """Prepare to run jobs in this process, the child in ``slot``; nothing that a fork shares is open before."""
        ...

    def acquire(self, reference: bytes, payload: bytes | None, *, attempts: int, run_alone: bool) -> Acquired | Verdict:
        """Lock the row and read it (or read the direct payload).

        ``attempts`` counts for direct jobs. A job whose host died repeatedly is released unless ``run_alone``.
        Raises :class:`Conflict` and :class:`~sidestream.errors.StoreUnavailable`.
        """
        ...

    def run(self, acquired: Acquired) -> None:
        """Call the action; its exceptions come out as they are. Raises :class:`NotNow`."""
        ...

    def commit(self, acquired: Acquired) -> None:
        """Write "done" and commit; raise :class:`Conflict` or :class:`Uncertain`, or what a hook raised."""
        ...

    def verify(self, acquired: Acquired) -> bool:
        """After :class:`Uncertain`: end the old session, read the row with a waiting lock; True when it is terminal."""
        ...

    def reset(self) -> None:
        """Roll back and forget everything of the job; reconnect when the connection is broken. Raises nothing."""
        ...

    def release_locks(self, acquired: Acquired) -> None:
        """Free what the job held beyond its transaction (its key); called after every end of it."""
        ...

    @property
    def hears_failures(self) -> bool:
        """Whether :meth:`job_failed` would tell anybody."""
        ...

    def job_failed(self, failure: JobFailure) -> None:
        """Tell the application that a job ended as failed: in a process that runs no jobs, after the row says so."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...
