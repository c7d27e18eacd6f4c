"""The PostgreSQL session of a child: its guarded connection, its transactions and its locks.

A child keeps its connection from job to job. A job whose statements change the session itself (see
:func:`leaves_state`) costs the child that connection, so that the next job does not see the change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import Row

from sidestream.errors import CommitRefused
from sidestream.executors.protocol import Conflict, SessionLost, Uncertain
from sidestream.store import acquire, locks, schema, sessions
from sidestream.store.adapter import CONFLICTS, SESSION_ENDS, connect, sqlstate, translate

T = TypeVar("T")

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ"
"""Odoo's isolation: a job sees one snapshot, and a row that changed under it raises 40001."""
VERIFY_TIMEOUT = 5.0
"""Longest wait, in seconds, for the lock of a job whose commit got no reply."""

_ORM_PREFIXES = ('SELECT "', 'UPDATE "', 'INSERT INTO "', 'DELETE FROM "')
_LONG = 500
"""Length from which a statement that begins like the ORM's is not searched: no person writes one."""
_PLAIN = frozenset({"SELECT", "UPDATE", "INSERT", "DELETE", "SAVEPO", "RELEAS", "ROLLBA"})
"""First six letters of the statements that change the session only through a function that they call."""
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_CHANGES_SESSION = re.compile(
    r"""
    SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)
    | (?:LISTEN|LOAD|DISCARD)\b
    | PREPARE\s+(?!TRANSACTION\b)
    | DECLARE\b.*\bWITH\s+HOLD\b
    | CREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\b(?!.*\bON\s+COMMIT\s+DROP\b)
    | CREATE\b.*\bPG_TEMP\b
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_SESSION_LOCK = re.compile(r"\bPG_(?:TRY_)?ADVISORY_LOCK(?:_SHARED)?\b", re.IGNORECASE)
_SET_CONFIG = re.compile(r"\bSET_CONFIG\s*\(", re.IGNORECASE)
_SET_CONFIG_LOCALLY = re.compile(r"\bSET_CONFIG\s*\([^()]*,\s*TRUE\s*\)", re.IGNORECASE)


def leaves_state(query: Any, cursor: Any = None) -> bool:
    """Return whether ``query`` may change its session beyond the end of the transaction.

    When in doubt the answer is True, which costs one new connection. Functions and DO blocks on the server, and
    statements that bypass the cursor's ``execute``, are not seen. ``cursor`` renders a query composed with ``sql``.
    """
    text = query if query.__class__ is str else _text(query, cursor)
    if ";" not in text:
        if text.startswith(_ORM_PREFIXES):
            if len(text) > _LONG:
                return False
        elif text.lstrip()[:6].upper() not in _PLAIN:
            return _search(text)
        if not ("advisory_lock" in text or "set_config" in text or "ADVISORY_LOCK" in text or "SET_CONFIG" in text):
            return False
    return _search(text)


def _search(text: str) -> bool:
    """Search each statement, also the rest of one after a semicolon inside a literal."""
    if any(_CHANGES_SESSION.match(statement.strip()) for statement in _COMMENT.sub(" ", text).split(";")):
        return True
    if _SESSION_LOCK.search(text):
        return True
    return len(_SET_CONFIG.findall(text)) > len(_SET_CONFIG_LOCALLY.findall(text))


def _text(query: Any, cursor: Any) -> str:
    code = getattr(query, "code", None)  # Odoo's SQL
    if isinstance(code, str):
        return code
    if isinstance(query, bytes):
        return query.decode("latin-1")
    if hasattr(query, "as_string"):
        query = query.as_string(getattr(cursor, "_obj", cursor))  # psycopg2's cursor below Odoo's, or psycopg's own
    return str(query)


class TrackingCursor(psycopg.Cursor[Row]):
    """A cursor for actions that notes statements which change the session."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Self:
        """Execute ``query``."""
        self._track(query)
        return super().execute(query, *args, **kwargs)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        """Execute ``query`` for each set of parameters."""
        self._track(query)
        super().executemany(query, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Row]:
        """Execute ``query`` and yield its rows one by one."""
        self._track(query)
        return super().stream(query, *args, **kwargs)

    def _track(self, query: Any) -> None:
        connection = self.connection
        if isinstance(connection, GuardedConnection) and not connection.dirty:
            connection.dirty = leaves_state(query, self)


class GuardedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which only the executor ends the transaction.

    It is in autocommit mode and the executor sends BEGIN and COMMIT itself, so that psycopg never opens a transaction
    on its own. Savepoints (``with connection.transaction():``) work as usual.
    """

    #: Name of the action that runs, or None between jobs.
    action: str | None = None
    #: The session was changed beyond the end of the transaction, so no other job may use it.
    dirty = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See psycopg."""
        super().__init__(*args, **kwargs)
        self.cursor_factory = TrackingCursor
        self._initial = self._configuration()

    @property
    def changed(self) -> bool:
        """Whether the job changed the session, or the configuration of this object."""
        return self.dirty or self._configuration() != self._initial

    def _configuration(self) -> tuple[object, ...]:
        return self.row_factory, self.cursor_factory, self.server_cursor_factory, self.prepare_threshold

    def commit(self) -> None:
        """Refuse: raise :class:`~sidestream.errors.CommitRefused`."""
        raise self._refusal("commit")

    def rollback(self) -> None:
        """Refuse: raise :class:`~sidestream.errors.CommitRefused`."""
        raise self._refusal("roll back")

    def _refusal(self, verb: str) -> CommitRefused:
        return CommitRefused(
            f"The action {self.action!r} tried to {verb} the transaction of its job, which must contain both its "
            'effect and "done". Remove the call, or declare the action with commits="relock" and call context.commit().'
        )


class Session:
    """A connection that is opened at first use, with explicit transactions."""

    def __init__(self, dsn: str, application_name: str, on_backend: Callable[[int], None]) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._on_backend = on_backend
        self._connection: GuardedConnection | None = None
        self._cursor: psycopg.Cursor[tuple[Any, ...]] | None = None
        self._database: schema.Database | None = None
        self._backend = 0
        #: The SQLSTATE of the notice with which the server announced the end of the last session; "" without one.
        self.end_code = ""

    @property
    def connection(self) -> GuardedConnection:
        """Return the connection, opened at first use; raise StoreUnavailable or SchemaMismatch."""
        if self._connection is None:
            connection = connect(self._dsn, self._application_name, autocommit=True, connection_class=GuardedConnection)
            self._connection, self._cursor = connection, psycopg.Cursor(connection)
            self.end_code = ""
            connection.add_notice_handler(self._on_notice)
            self._backend = connection.info.backend_pid
            self._on_backend(self._backend)
            try:
                self._database = self.guarded(lambda: schema.identify(self.cursor))
            except BaseException:
                self.close()  # otherwise the next use would take the database for identified
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
        """The database behind the connection; a new connection may find another one in its place."""
        self.connection  # noqa: B018  # opens it
        assert self._database is not None
        return self._database

    @property
    def broken(self) -> bool:
        """Whether the connection is lost."""
        return self._connection is not None and (self._connection.closed or self._connection.broken)

    def guarded(self, statement: Callable[[], T]) -> T:
        """Run a statement; raise Conflict or SessionLost for conflicts and lost connections."""
        try:
            return statement()
        except psycopg.Error as error:
            raise self.explain(error) from error

    def explain(self, error: psycopg.Error) -> Exception:
        """Return ``error`` as Conflict or SessionLost, or unchanged."""
        if sqlstate(error) in CONFLICTS:
            return Conflict(str(error).strip())
        if self.broken:
            return SessionLost(str(translate(error, "running a job")), sqlstate(error) or self.end_code)
        return error

    def _on_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        """Record why the server is about to end this session, which it announces in a warning."""
        if notice.sqlstate in SESSION_ENDS:
            self.end_code = notice.sqlstate

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
                raise Uncertain(str(error).strip(), sqlstate(error) or self.end_code) from error
            raise self.explain(error) from error

    def rollback(self) -> None:
        """Roll back an open transaction; drop the connection when that fails."""
        connection = self._connection
        if connection is None:
            return
        if self.broken:
            self.close()
        elif connection.info.transaction_status != TransactionStatus.IDLE:
            try:
                self.cursor.execute("ROLLBACK")
            except psycopg.Error:
                # The session is unusable; the next job opens another one.
                self.close()

    def alive(self) -> bool:
        """Ask the server whether the session, and with it its locks, still exists."""
        if self._connection is None:
            return False
        try:
            self.cursor.execute("SELECT 1")
        except psycopg.Error:
            self.close()
            return False
        return True

    def try_locks(self, wanted: Sequence[bytes]) -> bool:
        """Take session-level advisory locks of 8 bytes without waiting; False and none when another session has one."""
        for position, lock in enumerate(wanted):
            self.connection  # noqa: B018  # opens it
            if not self.guarded(partial(locks.lock_tag, self.cursor, lock)):
                self.unlock_all(wanted[:position])
                return False
        return True

    def unlock_all(self, held: Sequence[bytes]) -> None:
        """Free locks of :meth:`try_locks`; a lost session has freed them already."""
        for lock in held:
            if self._connection is None or self.broken:
                return
            try:
                locks.unlock_tag(self.cursor, lock)
            except psycopg.Error:
                self.close()

    def state_after_lost_commit(self, row_id: int) -> str | None:
        """End the session whose commit got no reply, then read the row's state with a waiting lock."""
        return self._after_lost_commit(
            lambda cursor: acquire.state_when_unlocked(cursor, row_id, timeout=VERIFY_TIMEOUT)
        )

    def done_after_lost_commit(self, uuid: Any) -> bool:
        """Return whether the row of a direct job exists after a lost commit."""
        return self._after_lost_commit(lambda cursor: acquire.inbox_has(cursor, uuid))

    def _after_lost_commit(self, read: Callable[[psycopg.Cursor[tuple[Any, ...]]], T]) -> T:
        lost = self._backend
        self.close()
        cursor = self.connection.cursor()

        def terminate_and_read() -> T:
            sessions.terminate_backend(cursor, lost, self._application_name)
            return read(cursor)

        return self.guarded(terminate_and_read)

    def close_if_changed(self) -> None:
        """Close the connection after a job that changed its session; the next job has a new one."""
        if self._connection is not None and self._connection.changed:
            self.close()

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            connection.close()
            self._on_backend(0)
