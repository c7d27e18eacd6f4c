"""A child's session keeps nothing that an action left in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from sidestream import Context
from sidestream.store import acquire
from sidestream.store.locks import running_jobs
from tests.fundamentals.conftest import Shop

LEAVINGS = {
    "a setting": "SET statement_timeout = '77s'",
    "a setting of a function": "SELECT set_config('statement_timeout', '77s', false)",
    "a lock": "SELECT pg_advisory_lock(77)",
    "a temporary table": "CREATE TEMP TABLE left_over (id integer)",
    "a listener": "LISTEN left_over",
    "a prepared statement": "PREPARE left_over AS SELECT 1",
}
LOOK = """SELECT current_setting('statement_timeout'), to_regclass('pg_temp.left_over')::text,
    (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
    (SELECT count(*) FROM pg_listening_channels()),
    (SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_over')"""


class Looks:
    """Actions that leave something, and one that looks."""

    def __init__(self, shop: Shop) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.backends: list[int] = []
        self.shop = shop

        @shop.actions.action("leave")
        def leave(context: Context, statement: str, fails: bool) -> None:
            self.backends.append(context.connection.info.backend_pid)
            context.connection.execute(statement)  # type: ignore[call-overload]
            if fails:
                raise ValueError("what it left is not rolled back")

        @shop.actions.action("configure")
        def configure(context: Context) -> None:
            context.connection.row_factory = dict_row  # type: ignore[assignment]

        @shop.actions.action("look")
        def look(context: Context) -> None:
            self.backends.append(context.connection.info.backend_pid)
            row = context.connection.execute(LOOK).fetchone()
            assert row is not None
            self.seen.append(row)

    def run(self, *calls: tuple[str, tuple[Any, ...]]) -> None:
        with self.shop.jobs.transaction(self.shop.connection) as tx:
            for action, args in calls:
                tx.enqueue(action, args)
        self.shop.work()


@pytest.fixture
def shop(database: str, tmp_path: Any) -> Iterator[Shop]:
    shop = Shop(database, tmp_path)
    yield shop
    shop.connection.close()


@pytest.fixture
def looks(shop: Shop) -> Looks:
    return Looks(shop)


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize("statement", LEAVINGS.values(), ids=LEAVINGS.keys())
def test_a_job_does_not_see_session_changes_of_the_previous_job(looks: Looks, statement: str, fails: bool) -> None:
    looks.run(("leave", (statement, fails)), ("look", ()))
    assert looks.seen == [("0", None, 0, 0, 0)]


def test_a_job_receives_an_unchanged_connection(looks: Looks) -> None:
    looks.run(("configure", ()), ("look", ()))
    assert looks.seen == [("0", None, 0, 0, 0)]


def test_an_unchanged_session_is_kept(looks: Looks) -> None:
    looks.run(("leave", ("SELECT 1", False)), ("leave", ("SET LOCAL statement_timeout = '77s'", False)), ("look", ()))
    assert len(set(looks.backends)) == 1


def test_a_job_that_an_enqueuer_has_locked_does_not_run(looks: Looks, shop: Shop, database: str) -> None:
    """Whoever looks for duplicates locks the row; only a worker's child runs a job."""
    with shop.jobs.transaction(shop.connection) as tx:
        job_id = tx.enqueue("look", unique="once")
    with (
        psycopg.connect(database, application_name="web") as enqueuer,
        psycopg.connect(database) as person,
        shop.jobs.transaction(enqueuer) as tx,
    ):
        assert tx.enqueue("look", unique="once") == job_id
        enqueuer.execute("SELECT FROM sidestream_job WHERE id = %s FOR NO KEY UPDATE", [job_id])
        assert running_jobs(person.cursor(), [job_id]) == set()
    with (
        psycopg.connect(database, application_name="sidestream/host-1/0") as child,
        psycopg.connect(database) as person,
    ):
        assert isinstance(acquire.acquire_job(child.cursor(), job_id), acquire.Acquired)
        assert running_jobs(person.cursor(), [job_id]) == {job_id}
