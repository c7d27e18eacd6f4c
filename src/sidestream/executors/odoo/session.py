"""The Odoo cursor of a child: its transactions and the meaning of its errors.

The child keeps the cursor from job to job. Odoo's registry creates it, so that Odoo's pool, settings and hooks apply.
This module does not import odoo.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import STATUS_READY as READY

from sidestream.errors import ActionError, ForeignDatabase
from sidestream.executors.odoo.guarded_cursor import Guard, guarded_class
from sidestream.executors.protocol import Conflict, SessionLost, Uncertain
from sidestream.store import schema
from sidestream.store.adapter import ADMIN_SHUTDOWN, CONFLICTS, CRASH_SHUTDOWN, sqlstate, translate
from sidestream.store.prepared import PlanGone, Prepared

log = logging.getLogger(__name__)

IN_FAILED_TRANSACTION = "25P02"
"""SQLSTATE of a statement after an error in the same transaction."""
_WARNINGS = {"crash of another server process": CRASH_SHUTDOWN, "immediate shutdown command": ADMIN_SHUTDOWN}
T = TypeVar("T")


class OdooSession:
    """A cursor that is created at first use and on which only the executor commits."""

    def __init__(
        self, registry: Any, database_tag: bytes, on_backend: Callable[[int], None], conflict: type[Exception]
    ) -> None:
        """Prepare without connecting.

        Args:
            registry: Odoo's registry of the database.
            database_tag: Tag of the worker's database; another database at the same address is refused.
            on_backend: Called with the pid of the PostgreSQL backend, and with 0 when the connection is closed.
            conflict: Odoo's own exception for "retry the transaction".
        """
        self.registry = registry
        self.guard = Guard()
        #: Pid of the last PostgreSQL backend.
        self.backend = 0
        self._tag = database_tag
        self._on_backend = on_backend
        self._conflict = conflict
        self._cr: Any = None
        self._store: Prepared | None = None

    @property
    def cr(self) -> Any:
        """Odoo's cursor, created at first use and again after it was closed."""
        if self._cr is not None and self._cr.closed:
            self.drop()
        if self._cr is None:
            cr = self.guarded(self.registry.cursor)
            try:
                self._identify(cr)
            except BaseException:
                cr._cnx.close()
                cr._closed = True
                raise
            cr.__class__ = guarded_class(cr.__class__)
            cr.sidestream = self.guard
            self._cr = cr
            self._store = Prepared(cr._obj)
            self.backend = cr._cnx.get_backend_pid()
            self._on_backend(self.backend)
        return self._cr

    def _identify(self, cr: Any) -> None:
        """Refuse a database that has replaced the worker's own."""
        found = self.guarded(lambda: schema.identify(cr._obj))
        if found.tag != self._tag:
            raise ForeignDatabase(
                f"The database behind the worker's address was {self._tag.hex()} and is now {found.tag.hex()} (the "
                "first half of its uuid); restart the worker."
            )
        cr._cnx.rollback()  # the job needs a snapshot from when it begins

    @property
    def store(self) -> Prepared:
        """The psycopg2 cursor below Odoo's, for our own statements: Odoo does not log their errors."""
        self.cr  # noqa: B018  # opens it
        assert self._store is not None
        return self._store

    def guarded(self, statement: Callable[[], T]) -> T:
        """Run a statement; raise Conflict or SessionLost for conflicts and lost connections."""
        try:
            return statement()
        except (self._conflict, PlanGone) as error:
            raise Conflict(str(error)) from error
        except psycopg2.Error as error:
            raise self._explain(error) from error

    def commit(self) -> None:
        """Commit what was flushed, without hooks; raise Conflict, or Uncertain without a reply."""
        cnx = self._cr._cnx
        try:
            cnx.commit()
        except psycopg2.Error as error:
            if cnx.closed:
                raise Uncertain(str(error).strip(), self._reason(error)) from error
            raise self._explain(error) from error

    def committed(self) -> None:
        """After a commit, clear the cache, run the hooks and signal changes to other processes.

        A hook that uses this cursor begins a transaction. It is rolled back here, as Odoo does when it closes the
        cursor of a request; otherwise the next job would run in its snapshot and commit its writes. Changes are
        signalled even when a hook raises, because other processes hold outdated caches.
        """
        cr = self._cr
        cr.clear()
        cr._now = None
        cr.prerollback.clear()
        cr.postrollback.clear()
        try:
            with self.guard.between():
                cr.postcommit.run()
        finally:
            try:
                if cr._cnx.status != READY:
                    self.guard.rollback(cr)
            finally:
                self.registry.signal_changes()
                self._close_if_changed()

    def rollback(self) -> None:
        """Roll back, or drop the cursor when that fails. Never raises."""
        if self._cr is not None:
            try:
                self.guard.rollback(self._cr)
            except Exception as error:  # noqa: BLE001  # a hook or the connection failed: the cursor is unusable
                log.info("Dropped a database cursor: %s", error, extra={"action": "cursor_dropped"})
                self.drop()
        self.registry.reset_changes()
        self._close_if_changed()

    def _close_if_changed(self) -> None:
        """Drop the connection after a job that changed its session; the next job has a new one.

        Odoo's pool resets a connection whenever it is borrowed. Here a new connection is cheaper: a reset would cost
        every job a round trip, and would discard our prepared statements. A job that commits in parts, or that has
        three steps, keeps its session until it ends.
        """
        if self.guard.dirty and self.guard.action is None:
            self.drop()

    def drop(self) -> None:
        """Close the connection; the next use opens another one."""
        self.guard.dirty = False
        cr, self._cr, self._store = self._cr, None, None
        if cr is None:
            return
        self._on_backend(0)
        if not cr._cnx.closed:
            cr._cnx.close()
        cr._closed = True

    def _explain(self, error: Exception) -> Exception:
        if sqlstate(error) in CONFLICTS:
            return Conflict(str(error).strip())
        if sqlstate(error) == IN_FAILED_TRANSACTION:
            return ActionError(
                "The action continued after a PostgreSQL error, so its transaction cannot be committed; put statements "
                "that may fail inside: with self.env.cr.savepoint()."
            )
        if self._cr is None or self._cr._cnx.closed:
            return SessionLost(str(translate(error, "running a job")), self._reason(error))
        return error

    def _reason(self, error: Exception) -> str:
        """Return the SQLSTATE with which the session ended, from the text of the warnings.

        If the server does not speak English, the reason stays unknown and the job becomes a suspect.
        """
        code = sqlstate(error)
        if code is not None or self._cr is None:
            return code or ""
        last = "".join(self._cr._cnx.notices[-1:])
        return next((code for words, code in _WARNINGS.items() if words in last), "")
