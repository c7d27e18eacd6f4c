"""The PostgreSQL connection that all maintenance tasks of a worker share; they run in one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from sidestream.errors import SchemaMismatch
from sidestream.store import schema
from sidestream.store.adapter import translate

Cursor = psycopg.Cursor[tuple[Any, ...]]


class StoreConnection:
    """Connect when a cursor is first needed, and again after the connection was lost."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], *, on_open: Callable[[Cursor], None] = lambda cursor: None
    ) -> None:
        """Connect to nothing yet.

        Args:
            connect: Opens an autocommit connection in a bounded time, or raises StoreUnavailable.
            on_open: Called with a cursor of each new connection, once it is known to reach the right database.
        """
        self._connect = connect
        self._on_open = on_open
        self._connection: psycopg.Connection[Any] | None = None
        self._database: schema.Database | None = None
        #: The database behind the address was found to be another one than before.
        self.changed = False

    @contextmanager
    def cursor(self, doing: str) -> Iterator[Cursor]:
        """Give a cursor whose statements commit one by one; ``doing`` says in errors what could not be done.

        Raises:
            StoreUnavailable: PostgreSQL does not answer, or dropped the connection.
            SchemaMismatch: Our tables are missing, of another release, or in another database than before.
            StoreError: A statement failed for another reason.
        """
        try:
            with self._acquired().cursor() as cursor:
                yield cursor
        except psycopg.Error as error:
            if self._connection is not None and (self._connection.closed or self._connection.broken):
                self.close()
            raise translate(error, doing) from error

    @contextmanager
    def transaction(self, doing: str) -> Iterator[Cursor]:
        """Give a cursor whose statements commit together; raises as :meth:`cursor`."""
        with self.cursor(doing) as cursor, cursor.connection.transaction():
            yield cursor

    def database(self) -> schema.Database:
        """Return which database this is; raises as :meth:`cursor`."""
        if self._database is None:
            with self.cursor("asking which database this is"):
                pass  # opening the connection identifies it
        assert self._database is not None
        return self._database

    def check(self) -> None:
        """Look anew which database this is; raises as :meth:`cursor`."""
        with self.cursor("looking which database this is") as cursor:
            self._identify(cursor)

    def close(self) -> None:
        """Close the connection; the next use opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _acquired(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            connection = self._connect()
            try:
                with connection.cursor() as cursor:
                    self._identify(cursor)
                    self._on_open(cursor)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _identify(self, cursor: Cursor) -> None:
        found = schema.identify(cursor)
        if self._database is not None and found != self._database:
            self.changed = True
            # Its rows' ids would be published under the name of the first one's.
            raise SchemaMismatch(
                f"The database behind the worker's address was {self._database.uuid} and is now {found.uuid}; "
                "restart the worker."
            )
        self._database = found
