"""What the store needs of a cursor: the part of the DB-API that psycopg 3, psycopg2 and Odoo's wrapper share."""

from __future__ import annotations

from typing import Any, Protocol


class Cursor(Protocol):
    """A DB-API cursor whose rows are tuples and whose parameters are written ``%(name)s``."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement with named parameters."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        ...

    def fetchall(self) -> Any:
        """Return the rows that are left."""
        ...
