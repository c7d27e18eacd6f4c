"""What the store needs of a cursor, and how it reads rows: by the names of their columns.

The needs are the part of the DB-API that psycopg 3, psycopg2 and Odoo's wrapper share. Every query of this package
states its contract above its text: what it returns, which rows it locks, and the index that serves it. A query whose
contract names no lock only reads. Unless its contract says otherwise, a query is correct at READ COMMITTED and
REPEATABLE READ.
"""

from __future__ import annotations

from collections import namedtuple
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol, overload


class Cursor(Protocol):
    """A DB-API cursor whose rows are tuples and whose parameters are written ``%(name)s``."""

    @property
    def description(self) -> Any:
        """Describe the columns of the last result; each entry begins with the column's name."""
        ...

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement with named parameters."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        ...

    def fetchall(self) -> Any:
        """Return the rows that are left."""
        ...


def fetch_one(cur: Cursor) -> Any:
    """Return the next row with its columns as attributes, or None."""
    row = cur.fetchone()
    return None if row is None else _row_type(cur)._make(row)


def fetch_all(cur: Cursor) -> list[Any]:
    """Return the rows that are left, with their columns as attributes."""
    rows = cur.fetchall()
    return list(map(_row_type(cur)._make, rows)) if rows else []


def fetch_ids(cur: Cursor) -> set[int]:
    """Return the values of the one column of the rows that are left."""
    return {row_id for (row_id,) in cur.fetchall()}


def fetch_value(cur: Cursor) -> Any:
    """Return the value of the one column of the one row."""
    [value] = cur.fetchone()
    return value


@overload
def aware(moment: datetime) -> datetime: ...
@overload
def aware(moment: None) -> None: ...
def aware(moment: datetime | None) -> datetime | None:
    """Return a column's moment, which is in UTC, with its time zone."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def naive(moment: datetime | None) -> datetime | None:
    """Return an aware moment as the columns have it: in UTC, without its time zone."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def _row_type(cur: Cursor) -> Any:
    return _named(tuple(column[0] for column in cur.description))


@cache  # the statements are constants, so there are few
def _named(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names)  # noqa: PYI024  # the names come with the result
