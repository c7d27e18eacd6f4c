"""Statements that change the session, and the consequence for a child's connection."""

from __future__ import annotations

from typing import Any

import pytest

from sidestream.executors.odoo.guarded_cursor import Guard, guarded_class
from sidestream.executors.session import leaves_state


class Sql:
    """Odoo's SQL, as far as it is looked at."""

    def __init__(self, code: str) -> None:
        self.code = code


class Composed:
    """psycopg2's."""

    def as_string(self, cursor: object) -> str:
        return f'SET {cursor} = "1"'


LEAVE = [
    "SET statement_timeout = 0",
    "  set session lock_timeout = '1s'",
    "SET\nsearch_path TO x",
    "SET ROLE odoo",
    "SET TIME ZONE 'UTC'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "listen imbus",
    "LOAD 'auto_explain'",
    "PREPARE mine AS SELECT 1",
    "DISCARD ALL",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE t (id int)",
    "create temporary table t as select 1",
    "CREATE LOCAL TEMPORARY SEQUENCE s",
    "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
    "CREATE TABLE pg_temp.t (id int)",
    "SELECT pg_advisory_lock(1)",
    "\n   SELECT pg_try_advisory_lock(%s, 2)",
    "SELECT PG_ADVISORY_LOCK_SHARED(1)",
    'SELECT "a"."id" FROM "a" WHERE pg_try_advisory_lock("a"."id")',
    "WITH x AS (SELECT pg_advisory_lock(1)) SELECT 1",
    "SELECT set_config('a.b', %s, false)",
    "SELECT set_config('a.b', 'x', %s)",
    "SELECT set_config('a.b', 'x', true), set_config('a.c', 'x', false)",
    "SELECT 1; SET search_path = x",
    "SET LOCAL lock_timeout = 1; SET lock_timeout = 1",
    "/* why */ SET search_path = x",
    "-- why\nSET search_path = x",
    "UPDATE a SET b = 1; CREATE TEMP TABLE c ()",
]
LEAVE_NOT = [
    'SELECT "a"."id", "a"."advisory_locked" FROM "a"',
    'UPDATE "a" SET "set_config" = \'x;y\'',
    "SELECT 1",
    "\n SELECT 1",
    "WITH x AS (SELECT 1) SELECT 1",
    "INSERT INTO a (b) VALUES ('SET x = 1')",
    "SAVEPOINT a",
    'ROLLBACK TO SAVEPOINT "a"',
    "SET LOCAL statement_timeout = 1000",
    "set local lock_timeout to '10s'",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1)",
    "SELECT pg_advisory_unlock(1)",
    "SELECT set_config('a.b', %s::text, true)",
    "CREATE TABLE t (temp int)",
    "CREATE INDEX template ON a (b)",
    "CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1",
    "DECLARE hashed_moves CURSOR FOR SELECT 1",
    "LOCK TABLE a IN SHARE MODE",
    "DELETE FROM a; DELETE FROM b",
]


@pytest.mark.parametrize("statement", LEAVE)
def test_statements_that_change_the_session(statement: str) -> None:
    assert leaves_state(statement)
    assert leaves_state(statement.encode())
    assert leaves_state(Sql(statement))


@pytest.mark.parametrize("statement", LEAVE_NOT)
def test_statements_that_do_not_change_the_session(statement: str) -> None:
    assert not leaves_state(statement)
    assert not leaves_state(statement.encode())
    assert not leaves_state(Sql(statement))


class Cursor:
    """What a guard is laid over."""

    _obj = "search_path"

    def execute(self, query: Any, params: Any = None, log_exceptions: bool = True) -> tuple[Any, ...]:
        return query, params, log_exceptions


def test_a_guarded_cursor_notes_a_change_and_passes_everything_on() -> None:
    cursor: Any = Cursor()
    cursor.__class__ = guarded_class(Cursor)
    cursor.sidestream = Guard()
    assert cursor.execute("SELECT %s", [1], log_exceptions=False) == ("SELECT %s", [1], False)
    assert cursor.execute(query="SELECT 1") == ("SELECT 1", None, True)
    assert not cursor.sidestream.dirty
    cursor.execute(Composed())
    assert cursor.sidestream.dirty
