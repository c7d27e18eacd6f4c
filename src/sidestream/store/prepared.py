"""Statements that a connection prepares once and then executes by name.

psycopg 3 does this by itself; psycopg2, which is Odoo's, sends every statement as new text, and PostgreSQL parses and
plans it anew for each job. https://www.postgresql.org/docs/current/sql-prepare.html

What invalidates a prepared statement, and what happens then:

- After DDL, a changed ``search_path`` or fresh statistics, PostgreSQL plans it again by itself.
- If a column has another type ("cached plan must not change result type"), or after DEALLOCATE or DISCARD,
  :class:`PlanGone` is raised and the transaction has ended. The next transactions send plain text for a while, because
  an action that runs DEALLOCATE would cause the error again. Then all statements are prepared under new names.
- If a table grew a thousandfold before PostgreSQL counted it again, the plan may be unsuitable. An execution that takes
  longer than :data:`SLOW` makes PostgreSQL plan all statements again, at most once in :data:`REPLAN_PAUSE`, because on
  a busy machine well-planned statements are slow too.
"""

from __future__ import annotations

import itertools
import re
import time
from functools import cache
from typing import Any, NamedTuple

from sidestream.store.adapter import sqlstate
from sidestream.store.cursor import Cursor

SLOW = 0.01
"""Seconds after which an execution is suspected to follow a plan for a much smaller table."""
REPLAN_PAUSE = 5.0
"""Seconds in which everything is planned anew once at most."""
PLAIN_AFTER_GONE = 20
"""Executions without preparing after one whose statement was gone."""
_GONE = frozenset({"26000", "0A000"})
"""invalid_sql_statement_name; feature_not_supported, which reports a changed result type."""
_PARAMETER = re.compile(r"%(?:%|\((\w+)\)s)")
# Never used twice in a process, so that a name cannot stand for the statement of an earlier connection or plan.
_numbers = itertools.count(1)


class PlanGone(Exception):
    """A prepared statement is invalid; the transaction must be run again from its start."""


class _Numbered(NamedTuple):
    text: str
    names: tuple[str, ...]


class Prepared:
    """A cursor for the store's own statements; make one for each connection."""

    def __init__(self, cursor: Cursor) -> None:
        """Execute on psycopg2's ``cursor``; only one at a time, as every cursor."""
        self._cursor = cursor
        self._executes: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._plain = 0
        self._slow = False
        self._replanned = 0.0

    def execute(self, statement: str, parameters: dict[str, Any]) -> None:
        """Execute a statement whose parameters have casts (``%(id)s::bigint``); raises PlanGone."""
        if self._plain:
            self._plain -= 1
            self._cursor.execute(statement, parameters)
            return
        began = time.monotonic()
        if self._slow and began - self._replanned > REPLAN_PAUSE:
            self._slow, self._replanned = False, began
            self._cursor.execute("DISCARD PLANS")
        known = self._executes.get(statement)
        if known is None:
            known = self._prepare(statement)
        execute, names = known
        try:
            self._cursor.execute(execute, [parameters[name] for name in names])
        except Exception as error:
            if sqlstate(error) in _GONE:
                self._executes.clear()
                self._plain = PLAIN_AFTER_GONE
                raise PlanGone(str(error).strip()) from error
            raise
        if time.monotonic() - began > SLOW:
            self._slow = True

    @property
    def description(self) -> Any:
        """Describe the columns of the last result."""
        return self._cursor.description

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._cursor.fetchone()

    def fetchall(self) -> Any:
        """Return the rows that are left."""
        return self._cursor.fetchall()

    def _prepare(self, statement: str) -> tuple[str, tuple[str, ...]]:
        numbered = _numbered(statement)
        name = f"sidestream_{next(_numbers)}"
        self._cursor.execute(f"PREPARE {name} AS {numbered.text}")
        places = ", ".join(["%s"] * len(numbered.names))
        known = self._executes[statement] = (f"EXECUTE {name} ({places})", numbered.names)
        return known


@cache
def _numbered(statement: str) -> _Numbered:
    """Return the statement with ``$1``, ``$2``, ..., and the names of its parameters."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return _Numbered(_PARAMETER.sub(number, statement), tuple(names))
