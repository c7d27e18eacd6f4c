"""The child's one cursor of Odoo, kept from job to job: who ends its transaction, and what its errors mean.

It is made by Odoo's registry, so that Odoo's pool, settings and hooks are what they are everywhere; nothing here
imports odoo.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import STATUS_READY as READY

from sidestream.errors import ActionError, ForeignDatabase
from sidestream.executors.odoo.guarded_cursor import Guard, guard_class
from sidestream.executors.protocol import Conflict, SessionLost, Uncertain
from sidestream.store import schema
from sidestream.store.adapter import ADMIN_SHUTDOWN, CONFLICTS, CRASH_SHUTDOWN, sqlstate, translate
from sidestream.store.prepared import PlanGone, Prepared

log = logging.getLogger(__name__)

BROKEN = "25P02"
"""A statement after an error in the same transaction."""
_WARNINGS = {"crash of another server process": CRASH_SHUTDOWN, "immediate shutdown command": ADMIN_SHUTDOWN}
T = TypeVar("T")


class OdooSession:
    """A lazily made cursor on which only the executor commits."""

    def __init__(
        self, registry: Any, database_tag: bytes, on_backend: Callable[[int], None], conflict: type[Exception]
    ) -> None:
        """Prepare; nothing is connected.

        Args:
            registry: Odoo's, of the database.
            database_tag: The worker's database: no other that is found behind its address is worked on.
            on_backend: Told the pid of the PostgreSQL backend, and 0 when it is given up.
            conflict: Odoo's own exception for "try again".
        """
        self.registry = registry
        self.guard = Guard()
        #: Pid of the backend that was used last.
        self.backend = 0
        self._tag = database_tag
        self._on_backend = on_backend
        self._conflict = conflict
        self._cr: Any = None
        self._store: Prepared | None = None

    @property
    def cr(self) -> Any:
        """Odoo's cursor, made when first asked for or when the last one broke."""
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
            cr.__class__ = guard_class(cr.__class__)
            cr.sidestream = self.guard
            self._cr = cr
            self._store = Prepared(cr._obj)
            self.backend = cr._cnx.get_backend_pid()
            self._on_backend(self.backend)
        return self._cr

    def _identify(self, cr: Any) -> None:
        """Refuse a database that was put in the place of the worker's while it ran."""
        found = self.guarded(lambda: schema.identify(cr._obj))
        if found.tag != self._tag:
            raise ForeignDatabase(
                f"The database behind the worker's address was {self._tag.hex()} and is now {found.tag.hex()} (the "
                "first half of its uuid); restart the worker."
            )
        cr._cnx.rollback()  # a job sees what is committed when it begins

    @property
    def store(self) -> Prepared:
        """psycopg2's cursor below it, for our own statements: what fails there is no error in Odoo's log."""
        self.cr  # noqa: B018  # opens it
        assert self._store is not None
        return self._store

    def guarded(self, statement: Callable[[], T]) -> T:
        """Run something; turn conflicts and lost connections into :class:`Conflict` and :class:`StoreUnavailable`."""
        try:
            return statement()
        except (self._conflict, PlanGone) as error:
            raise Conflict(str(error)) from error
        except psycopg2.Error as error:
            raise self._explain(error) from error

    def commit(self) -> None:
        """Commit what was flushed, without a hook; raise :class:`Conflict`, or :class:`Uncertain` without a reply."""
        cnx = self._cr._cnx
        try:
            cnx.commit()
        except psycopg2.Error as error:
            if cnx.closed:
                raise Uncertain(str(error).strip(), self._reason(error)) from error
            raise self._explain(error) from error

    def committed(self) -> None:
        """After a commit: forget what was cached, run the hooks, tell other processes what changed.

        What a hook reads or writes with this cursor begins a transaction. It ends here, as it does where Odoo closes
        the cursor of a request; the next job would otherwise open in its snapshot, and commit what it wrote. Others
        are told also when a hook raises: what they have in their caches is no longer so.
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
                self._leave_nothing()

    def rollback(self) -> None:
        """Roll back; give the cursor up when that fails. Raises nothing."""
        if self._cr is not None:
            try:
                self.guard.rollback(self._cr)
            except Exception as error:  # noqa: BLE001  # a hook, or the connection: this cursor is of no more use
                log.info("A cursor is given up: %s", error, extra={"action": "cursor_dropped"})
                self.drop()
        self.registry.reset_changes()
        self._leave_nothing()

    def _leave_nothing(self) -> None:
        """After a job, give up a connection whose session it changed: the next one in this child knows nothing of it.

        Odoo's pool resets a connection each time that it is borrowed. Here a new one is cheaper: a reset would be a
        round trip for every job, and would take our prepared statements too. A job that commits in parts, or that
        calls somebody in between, keeps what it set until it ends.
        """
        if self.guard.dirty and self.guard.action is None:
            self.drop()

    def drop(self) -> None:
        """Close the connection; the next use makes another one."""
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
        if sqlstate(error) == BROKEN:
            return ActionError(
                "The action went on after an error of PostgreSQL, so nothing that it wrote can be committed; put what "
                "may fail inside: with self.env.cr.savepoint()."
            )
        if self._cr is None or self._cr._cnx.closed:
            return SessionLost(str(translate(error, "running a job")), self._reason(error))
        return error

    def _reason(self, error: Exception) -> str:
        """Return the SQLSTATE with which the session ended; psycopg2 keeps only the text of the server's warnings.

        In another language than English the reason stays unknown, and the job is suspected like any other.
        """
        code = sqlstate(error)
        if code is not None or self._cr is None:
            return code or ""
        last = "".join(self._cr._cnx.notices[-1:])
        return next((code for words, code in _WARNINGS.items() if words in last), "")
