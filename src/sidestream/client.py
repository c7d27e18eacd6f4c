"""Enqueue jobs in a PostgreSQL transaction, or directly in the broker.

There are three ways:

- ``with jobs.transaction(connection) as tx: tx.enqueue(...)``: the job exists if and only if the block's transaction
  commits, and is published right after the commit. This is the normal way.
- ``jobs.enqueue(..., connection=connection)``: the same row in a transaction that the caller commits. Sidestream does
  not see that commit, so the reconciler publishes the job up to a few seconds later.
- ``jobs.enqueue_direct(...)``: without a database. The job is as durable as Redis, and repeating a call with the same
  id is harmless.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, Unpack
from uuid import UUID

from sidestream.broker.protocol import Publication, lane
from sidestream.clock import Clock, SystemClock
from sidestream.crashpoints import crash_point
from sidestream.errors import InvalidJob, SettingsError, SidestreamError, StoreError, UnknownAction
from sidestream.job.building import build_job, check_arguments, check_job
from sidestream.job.codec import Signer, to_ms
from sidestream.job.job import Job
from sidestream.job.options import JobOptions
from sidestream.job.reference import NO_TAG8, direct_reference
from sidestream.job.uuids import new_uuid
from sidestream.relay.publications import publications_of
from sidestream.relay.relay import Relay
from sidestream.store import schema
from sidestream.store.adapter import translate
from sidestream.store.insert import insert

_IN_ERROR = 3
"""``transaction_status`` of psycopg 3 and psycopg2 after a failed statement: such a commit is silently a rollback."""


class Declared(Protocol):
    """The part of a declared action that the client uses."""

    @property
    def name(self) -> str:
        """Return its name."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """Return the decorated function."""
        ...

    def job_options(self, args: Sequence[Any], kwargs: Mapping[str, Any], given: Collection[str]) -> JobOptions:
        """Return the action's options for these arguments, without those that the call sets."""
        ...


class Catalog(Protocol):
    """The declared actions; :class:`sidestream.Actions` is one."""

    def get(self, name: str) -> Declared:
        """Return the action ``name`` or raise :class:`~sidestream.errors.UnknownAction`."""
        ...

    def __iter__(self) -> Iterator[Declared]: ...


ActionLike = str | Declared | Callable[..., Any]
"""A name, a declared action, or the function that was declared."""


class Inserted(NamedTuple):
    """Rows that exist once their transaction commits."""

    #: The rows' ids, in the order of the jobs.
    ids: list[int]
    #: The publications to pass to :meth:`Client.hand_over` after the commit.
    publications: list[Publication]


class Client:
    """Enqueues jobs; :class:`sidestream.Jobs` builds one from the settings.

    Use one per process. It may be shared between threads and by forked children.
    """

    def __init__(
        self,
        relay: Relay,
        signer: Callable[[], Signer],
        *,
        actions: Catalog | None = None,
        direct_timeout: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        """Publish through ``relay``, and sign direct jobs with ``signer()``.

        With ``actions``, only declared actions are accepted. ``direct_timeout``: seconds that :meth:`enqueue_direct`
        waits for the broker by default.
        """
        self._relay = relay
        self._make_signer = signer
        self._signer: Signer | None = None
        self._actions = actions
        self._direct_timeout = direct_timeout
        self._clock = clock or SystemClock()
        # By connection, because a connection stays with one database.
        self._databases: weakref.WeakKeyDictionary[Any, schema.Database] = weakref.WeakKeyDictionary()

    # -- in the caller's transaction -----------------------------------------------------------------------------

    def transaction(self, connection: Any) -> Transaction:
        """Return a block that commits ``connection`` and then publishes the jobs enqueued in it.

        An exception rolls the connection back, and no job exists. ``connection`` is a psycopg 3 or psycopg2 connection
        that is not in autocommit mode; a transaction that was open before the block is committed with it.
        """
        _refuse_unsuitable(connection)
        return Transaction(self, connection)

    def enqueue(
        self,
        action: ActionLike,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        connection: Any,
        **options: Unpack[JobOptions],
    ) -> int:
        """Insert a job in the open transaction of ``connection`` and return its id.

        The caller commits; the reconciler then publishes the job. See :meth:`Transaction.enqueue` for the options.
        """
        job = self.job(action, args, kwargs, **options)
        return self.insert(connection, [job]).ids[0]

    def insert(self, connection: Any, jobs: Sequence[Job]) -> Inserted:
        """Insert ``jobs`` with one statement; commit, then call :meth:`hand_over`."""
        for job in jobs:
            check_job(job)
        if not jobs:
            return Inserted([], [])
        _refuse_unsuitable(connection)
        with _cursor(connection) as cursor:
            database = self._databases.get(connection)
            if database is None:
                database = schema.identify(cursor, allow_copy=True)
                if not database.copied:  # somebody may adopt a copy while this process runs
                    self._databases[connection] = database
            stored = insert(cursor, jobs)
        crash_point("enqueue.inserted")
        if database.copied:  # the jobs wait until somebody adopts this database
            return Inserted([row.id for row in stored], [])
        return Inserted([row.id for row in stored], publications_of(stored, jobs, database))

    def hand_over(self, publications: Sequence[Publication]) -> bool:
        """Publish committed rows; False means later. Never raises (see :class:`Relay`)."""
        return self._relay.hand_over(publications)

    # -- without a database --------------------------------------------------------------------------------------

    def enqueue_direct(
        self,
        action: ActionLike,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        id: UUID | None = None,  # noqa: A002  # the natural name
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> UUID:
        """Enqueue a job directly in the broker and return its uuid.

        ``id``: repeating a call with the same id is harmless while the job exists; by default a new id is created.
        ``timeout``: seconds to wait for the broker. Raises subclasses of :class:`~sidestream.errors.BrokerError`; the
        message says whether the job may have been enqueued, and with which id to repeat the call.
        """
        job = self.job(action, args, kwargs, **options)
        if job.unique is not None:
            raise InvalidJob(
                f"unique={job.unique.key!r:.60} for the direct job of action {job.action!r:.80}: only rows can detect "
                "duplicates; enqueue it in a transaction, or pass the same id=... to calls for the same job."
            )
        if id is not None and not isinstance(id, UUID):
            raise InvalidJob(f"id={id!r:.60} is a {type(id).__name__}; expected a uuid.UUID.")
        if timeout is not None and not timeout > 0:
            raise InvalidJob(f"timeout={timeout!r} is not allowed; expected seconds above 0.")
        now_ms = to_ms(self._clock.now())
        uuid = id or new_uuid()
        if self._signer is None:
            self._signer = self._make_signer()
        payload = self._signer.seal(job, now_ms, uuid)
        self._relay.publish_direct(
            Publication(
                direct_reference(uuid, job.action, job.key, group=job.group, limit=job.limit).pack(),
                lane(NO_TAG8, job.queue),
                0 if job.run_at is None else to_ms(job.run_at),
                payload,
                priority=job.priority,
            ),
            self._direct_timeout if timeout is None else timeout,
        )
        return uuid

    # -- both ----------------------------------------------------------------------------------------------------

    def job(
        self,
        action: ActionLike,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Return a checked job for :meth:`Transaction.enqueue_many`, without enqueueing it."""
        name, declared = self._resolve(action)
        defaults: JobOptions | None = None
        if declared is not None:
            check_arguments(name, args, kwargs)
            given = [option for option, value in options.items() if value is not None]
            defaults = declared.job_options(args, kwargs or {}, given)
        return build_job(name, args, kwargs, now=self._clock.now(), defaults=defaults, **options)

    def forget_databases(self) -> None:
        """Identify each connection's database again, after the tables were removed or reinstalled."""
        self._databases.clear()

    def close(self, timeout: float = 1.0) -> None:
        """Publish kept rows for at most ``timeout`` seconds, and stop the relay's thread."""
        self._relay.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolve(self, action: ActionLike) -> tuple[str, Declared | None]:
        if isinstance(action, str):
            if self._actions is None:
                return action, None
            found = self._actions.get(action)
            return found.name, found
        given: Any = action
        if hasattr(given, "function") and hasattr(given, "name"):
            if self._actions is not None:
                self._actions.get(given.name)
            return given.name, given
        for candidate in self._actions or ():
            if candidate.function is action:
                return candidate.name, candidate
        raise UnknownAction(
            f"{action!r:.80} is not a declared action; pass its name, or declare the function and "
            "give its Actions object to Jobs(actions=...)."
        )


class Transaction:
    """The block of :meth:`Client.transaction`, usable until the block ends."""

    def __init__(self, client: Client, connection: Any) -> None:
        self._client = client
        self._connection = connection
        self._publications: list[Publication] = []
        self._entered = False
        #: Whether the jobs were published at the end of the block; otherwise the relay or the reconciler does so later.
        self.published = False

    def enqueue(
        self,
        action: ActionLike,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> int:
        """Insert a job now, in this transaction, and return its id.

        ``args`` and ``kwargs`` are JSON values for the action, ``options`` those of
        :class:`~sidestream.job.options.JobOptions`; the declared action supplies the others. With ``unique``, the id
        may be that of an existing job. Raises subclasses of :class:`~sidestream.errors.InvalidJob` (for an unknown
        option :class:`~sidestream.errors.UnsupportedOption`) and of :class:`~sidestream.errors.StoreError`.
        """
        job = self._client.job(action, args, kwargs, **options)
        return self._insert([job])[0]

    def enqueue_many(self, jobs: Iterable[Job]) -> list[int]:
        """Insert jobs of :meth:`Client.job` with one statement; return their ids in order."""
        return self._insert(list(jobs))

    def _insert(self, jobs: list[Job]) -> list[int]:
        if not self._entered:
            raise StoreError("The transaction block has ended or was not entered; enqueue inside 'with'.")
        inserted = self._client.insert(self._connection, jobs)
        # Publications of a savepoint that is rolled back stay here: a worker settles a reference without a row, and
        # the reconciler publishes a row that was withdrawn wrongly.
        self._publications += inserted.publications
        return inserted.ids

    def __enter__(self) -> Self:
        _refuse_unsuitable(self._connection)
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        if error is not None:
            _roll_back(self._connection, error)
            return
        _commit(self._connection)
        crash_point("enqueue.committed")
        self.published = self._client.hand_over(self._publications)


@contextmanager
def _cursor(connection: Any) -> Iterator[Any]:
    try:
        with connection.cursor() as cursor:
            yield cursor
    except SidestreamError:
        raise
    except Exception as error:
        raise translate(error, "enqueue a job", connection) from error


def _refuse_unsuitable(connection: Any) -> None:
    """Raise SettingsError unless jobs can be inserted in the connection's transaction."""
    commit = getattr(connection, "commit", None)
    if commit is None or not hasattr(connection, "autocommit") or inspect.iscoroutinefunction(commit):
        raise SettingsError(
            f"A {type(connection).__module__}.{type(connection).__qualname__} cannot be used here; expected a "
            "synchronous connection of psycopg 3 or psycopg2."
        )
    if connection.autocommit:
        raise SettingsError(
            "The connection is in autocommit mode, so a job could not share a transaction with your changes; "
            "set connection.autocommit = False."
        )


def _commit(connection: Any) -> None:
    if int(connection.info.transaction_status) == _IN_ERROR:
        _roll_back(connection)
        raise StoreError(
            "A statement of this transaction failed and its error was caught, so PostgreSQL rolled everything back and "
            "no job was enqueued. Let the error leave the block, or put the statement into a savepoint."
        )
    try:
        connection.commit()
    except Exception as error:
        raise translate(error, "commit the transaction of a job") from error


def _roll_back(connection: Any, because: BaseException | None = None) -> None:
    if connection.closed:
        return  # PostgreSQL rolled back when the connection broke
    try:
        connection.rollback()
    except Exception as error:
        translated = translate(error, "roll back the transaction of a job")
        if because is None:
            raise translated from error
        because.add_note(str(translated))  # the caller has to see the first error
