"""The one PostgreSQL session of a child: who may begin, commit and lock, and what a broken one means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from sidestream.executors.protocol import Conflict, SessionLost, Uncertain
from sidestream.executors.python.context import GuardedConnection
from sidestream.store import acquire, schema, sessions
from sidestream.store.adapter import CONFLICTS, SESSION_ENDS, connect, sqlstate, translate

T = TypeVar("T")

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ"
"""Odoo's isolation: a job sees one snapshot, and a row that changed under it raises 40001."""
VERIFY_TIMEOUT = 5.0
"""Longest wait, in seconds, for the lock of a job whose commit got no reply."""


class Session:
    """A lazily acquired connection on which transactions are begun and ended by hand."""

    def __init__(self, dsn: str, application_name: str, on_backend: Callable[[int], None]) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._on_backend = on_backend
        self._connection: GuardedConnection | None = None
        self._cursor: psycopg.Cursor[tuple[Any, ...]] | None = None
        self._database: schema.Database | None = None
        self._backend = 0
        #: The SQLSTATE with which the server announced the end of the last session in a notice; "" when it did not.
        self.told = ""

    @property
    def connection(self) -> GuardedConnection:
        """The connection, opened at first use; raises :class:`StoreUnavailable` or :class:`SchemaMismatch`."""
        if self._connection is None:
            connection = connect(self._dsn, self._application_name, autocommit=True, connection_class=GuardedConnection)
            self._connection, self._cursor = connection, psycopg.Cursor(connection)
            self.told = ""
            connection.add_notice_handler(self._hear)
            self._backend = connection.info.backend_pid
            self._on_backend(self._backend)
            try:
                self._database = self.guarded(lambda: schema.identify(self.cursor))
            except BaseException:
                self.close()  # else the next use would take it for one that was identified
                raise
        return self._connection

    @property
    def cursor(self) -> psycopg.Cursor[tuple[Any, ...]]:
        """The executor's own cursor (an action gets another one)."""
        cursor = self._cursor
        if cursor is None:
            cursor = self.connection.cursor()
        return cursor

    @property
    def database(self) -> schema.Database:
        """Which database this is: asked of each new connection, which may find another one in its place."""
        self.connection  # noqa: B018  # opens it
        assert self._database is not None
        return self._database

    @property
    def broken(self) -> bool:
        """Whether the connection is lost."""
        return self._connection is not None and (self._connection.closed or self._connection.broken)

    def guarded(self, statement: Callable[[], T]) -> T:
        """Run a statement; turn conflicts and lost connections into :class:`Conflict` and :class:`StoreUnavailable`."""
        try:
            return statement()
        except psycopg.Error as error:
            raise self.explain(error) from error

    def explain(self, error: psycopg.Error) -> Exception:
        """Return what ``error`` means to the runner: a conflict, a lost session, or the error itself."""
        if sqlstate(error) in CONFLICTS:
            return Conflict(str(error).strip())
        if self.broken:
            return SessionLost(str(translate(error, "running a job")), sqlstate(error) or self.told)
        return error

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        """Note why the server is about to end this session: it says so in a warning, not in an error."""
        if notice.sqlstate in SESSION_ENDS:
            self.told = notice.sqlstate

    def begin(self) -> None:
        """Begin a transaction."""
        self.connection  # noqa: B018  # opens it
        self.guarded(lambda: self.cursor.execute(BEGIN))

    def commit(self) -> None:
        """Commit; raise :class:`Conflict`, or :class:`Uncertain` when the reply was lost."""
        try:
            self.cursor.execute("COMMIT")
        except psycopg.Error as error:
            if self.broken:
                raise Uncertain(str(error).strip(), sqlstate(error) or self.told) from error
            raise self.explain(error) from error

    def rollback(self) -> None:
        """Roll back if a transaction is open; drop the connection when even that fails."""
        connection = self._connection
        if connection is None:
            return
        if self.broken:
            self.close()
        elif connection.info.transaction_status != TransactionStatus.IDLE:
            try:
                self.cursor.execute("ROLLBACK")
            except psycopg.Error:
                # The session is of no use any more; the next job opens another one.
                self.close()

    def alive(self) -> bool:
        """Whether the session, and with it what it locked, is still there; asks the server."""
        if self._connection is None:
            return False
        try:
            self.cursor.execute("SELECT 1")
        except psycopg.Error:
            self.close()
            return False
        return True

    def try_lock(self, lock: bytes) -> bool:
        """Take a session-level advisory lock named by 8 bytes, without waiting; False when another session has it."""
        self.connection  # noqa: B018  # opens it
        return self.guarded(lambda: acquire.lock_tag(self.cursor, lock))

    def try_locks(self, locks: Sequence[bytes]) -> bool:
        """Take all of them, or none: False when another session has one."""
        for position, lock in enumerate(locks):
            if not self.try_lock(lock):
                self.unlock_all(locks[:position])
                return False
        return True

    def unlock_all(self, locks: Sequence[bytes]) -> None:
        """Free each of them."""
        for lock in locks:
            self.unlock(lock)

    def unlock(self, lock: bytes) -> None:
        """Free a lock of :meth:`try_lock`; a lost session freed it by itself."""
        if self._connection is None or self.broken:
            return
        try:
            acquire.unlock_tag(self.cursor, lock)
        except psycopg.Error:
            self.close()

    def state_after_lost_commit(self, row_id: int) -> str | None:
        """End the session whose commit got no reply, then read the row's state with a waiting lock."""
        lost = self._backend
        self.close()
        cursor = self.connection.cursor()

        def read() -> str | None:
            sessions.terminate_backend(cursor, lost, self._application_name)
            return acquire.state_when_unlocked(cursor, row_id, timeout=VERIFY_TIMEOUT)

        return self.guarded(read)

    def done_after_lost_commit(self, uuid: Any) -> bool:
        """As :meth:`state_after_lost_commit` for a direct job: whether its inbox row is there."""
        lost = self._backend
        self.close()
        cursor = self.connection.cursor()

        def read() -> bool:
            sessions.terminate_backend(cursor, lost, self._application_name)
            return acquire.inbox_has(cursor, uuid)

        return self.guarded(read)

    def leave_nothing(self) -> None:
        """After a job, give up a connection that it changed: the next one in this child knows nothing of it."""
        if self._connection is not None and self._connection.changed:
            self.close()

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            connection.close()
            self._on_backend(0)
