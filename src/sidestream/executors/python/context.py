"""What an action is given: its job, its guarded connection, and the calls that keep the promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, Unpack
from uuid import UUID

import psycopg
from psycopg.rows import Row

from sidestream.errors import CommitRefused
from sidestream.executors.session_state import leaves_state
from sidestream.job.options import JobOptions


class WatchedCursor(psycopg.Cursor[Row]):
    """A cursor of an action: it notes a statement that leaves something in the session."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Self:
        """Execute."""
        self._watch(query)
        return super().execute(query, *args, **kwargs)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        """Execute for each set of parameters."""
        self._watch(query)
        super().executemany(query, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Row]:
        """Execute and give row after row."""
        self._watch(query)
        return super().stream(query, *args, **kwargs)

    def _watch(self, query: Any) -> None:
        connection = self.connection
        if isinstance(connection, GuardedConnection) and not connection.dirty:
            connection.dirty = leaves_state(query, self)


class GuardedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which only the executor ends the transaction.

    It is in autocommit mode and the executor says BEGIN and COMMIT itself, so that psycopg never opens a transaction
    on its own; savepoints (``with connection.transaction():``) work as usual.
    """

    #: Name of the action that runs, or None between jobs.
    action: str | None = None
    #: Something was left in the session that a rollback or commit does not take away: no other job may meet it.
    dirty = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See psycopg."""
        super().__init__(*args, **kwargs)
        self.cursor_factory = WatchedCursor
        self._made_as = self._made()

    @property
    def changed(self) -> bool:
        """Whether the next job would not find the connection, or its session, as this one did."""
        return self.dirty or self._made() != self._made_as

    def _made(self) -> tuple[object, ...]:
        return self.row_factory, self.cursor_factory, self.server_cursor_factory, self.prepare_threshold

    def commit(self) -> None:
        """Refuse: raise :class:`~sidestream.errors.CommitRefused`."""
        raise self._refusal("commit")

    def rollback(self) -> None:
        """Refuse: raise :class:`~sidestream.errors.CommitRefused`."""
        raise self._refusal("roll back")

    def _refusal(self, verb: str) -> CommitRefused:
        return CommitRefused(
            f"The action {self.action!r} tried to {verb} its job's transaction, in which effect and 'done' belong "
            'together. Remove the call, or declare the action with commits="relock" and call context.commit().'
        )


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
        #: Which start this is: 1 for the first.
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
                f"The action {self.action!r} has no database connection here: it runs outside a transaction."
            )
        return self._connection

    @property
    def cursor(self) -> psycopg.Cursor[tuple[Any, ...]]:
        """One cursor on :attr:`connection`, made when first asked for."""
        if self._cursor is None:
            self._cursor = self.connection.cursor()
        return self._cursor

    @contextmanager
    def outside(self) -> Iterator[None]:
        """The middle step of a three-step action: no transaction, so no connection to write to."""
        connection, self._connection, self._cursor = self._connection, None, None
        try:
            yield
        finally:
            self._connection = connection

    def idempotency_key(self, call: str = "") -> str:
        """Return the key to send with the external call named ``call``: the same on every attempt of this job."""
        return f"{self._origin}:{self.uuid or self.job_id}:{call}"

    def enqueue(
        self,
        action: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> int:
        """Enqueue a follow-up job in this job's transaction; return its id. It exists if, and only if, this is done.

        The options are those of every way in (:class:`~sidestream.job.options.JobOptions`).
        """
        if self._enqueue is None:
            raise CommitRefused(f"The action {self.action!r} has no transaction here to enqueue a follow-up job in.")
        return self._enqueue(action, args, kwargs or {}, options)

    def commit(self) -> None:
        """Commit what was done so far, then lock the job and check it again (``commits="relock"`` actions only).

        What was committed stays when the job fails later: promise 3 then holds once per committed part. Raises
        :class:`~sidestream.errors.LockLost` when the job is no longer ours, :class:`CommitRefused` when not declared.
        """
        if self._commit is None:
            self.connection.commit()
        else:
            self._commit()
