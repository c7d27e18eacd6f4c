"""Give an action its job, its guarded connection and follow-up jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack
from uuid import UUID

import psycopg

from sidestream.errors import CommitRefused
from sidestream.executors.session import GuardedConnection
from sidestream.job.options import JobOptions


class Context:
    """The running job, as its action sees it."""

    def __init__(
        self,
        *,
        action: str,
        job_id: int | None,
        uuid: UUID | None,
        attempt: int,
        origin: str,
        connection: GuardedConnection | None,
        enqueue: Callable[..., int] | None,
        commit: Callable[[], None] | None,
    ) -> None:
        #: The action's name.
        self.action = action
        #: The row's id; None for a direct job.
        self.job_id = job_id
        #: The direct job's uuid; None for a row.
        self.uuid = uuid
        #: Number of this attempt, from 1.
        self.attempt = attempt
        self._origin = origin
        self._connection = connection
        self._enqueue = enqueue
        self._commit = commit
        self._cursor: psycopg.Cursor[tuple[Any, ...]] | None = None

    @property
    def connection(self) -> GuardedConnection:
        """The connection whose transaction ends with the job. Commit and rollback are refused on it."""
        if self._connection is None:
            raise CommitRefused(
                f"The action {self.action!r} has no database connection here, because it runs outside a transaction."
            )
        return self._connection

    @property
    def cursor(self) -> psycopg.Cursor[tuple[Any, ...]]:
        """One cursor on :attr:`connection`, created at first use."""
        if self._cursor is None:
            self._cursor = self.connection.cursor()
        return self._cursor

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Withhold the connection during the call of a three-step action."""
        connection, self._connection, self._cursor = self._connection, None, None
        try:
            yield
        finally:
            self._connection = connection

    def idempotency_key(self, call: str = "") -> str:
        """Return the idempotency key of the external call ``call``, the same on every attempt."""
        return f"{self._origin}:{self.uuid or self.job_id}:{call}"

    def enqueue(
        self,
        action: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> int:
        """Enqueue a follow-up job, which exists if and only if this job is done; return its id.

        The options are those of :class:`~sidestream.job.options.JobOptions`.
        """
        if self._enqueue is None:
            raise CommitRefused(f"The action {self.action!r} has no transaction here to enqueue a follow-up job in.")
        return self._enqueue(action, args, kwargs or {}, options)

    def commit(self) -> None:
        """Commit the work so far, then lock and check the job again (``commits="relock"``).

        Committed work stays when the job fails later: promise 3 then holds once per committed part. Raises
        :class:`~sidestream.errors.LockLost` when another worker has taken the job over, and
        :class:`~sidestream.errors.CommitRefused` when the action does not declare commits.
        """
        if self._commit is None:
            self.connection.commit()
        else:
            self._commit()
