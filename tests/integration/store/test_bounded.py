"""A worker's own connection does not wait longer than it was told to."""

from __future__ import annotations

import time

import psycopg
import pytest

from sidestream.errors import StoreUnavailable
from sidestream.store.adapter import connect_bounded, sqlstate, translate
from tests.support.pooler import pooler_before

MACHINE = 5.0
"""Seconds that a busy machine may add."""


def test_a_statement_that_takes_long_is_cancelled_and_the_connection_stays(database: str) -> None:
    with connect_bounded(database, "test/0", answer=1.0) as connection:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("SELECT pg_sleep(60)")
        assert sqlstate(refused.value) == "57014"
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_the_url_says_of_statements_wins(database: str) -> None:
    url = f"{database}?options=-c%20statement_timeout%3D7000"
    with connect_bounded(url, "test/0") as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)


def test_a_connection_on_which_nobody_answers_is_dropped(database: str) -> None:
    with pooler_before(database) as (pooler, url):
        connection = connect_bounded(url, "test/0", answer=1.0)
        with pytest.raises(StoreUnavailable, match="no answer within 1 s"):  # noqa: SIM117, PT012
            with connection.cursor() as cursor:
                try:
                    with connection.transaction():
                        cursor.execute("SELECT 1")
                        pooler.freeze()
                        began = time.monotonic()
                        cursor.execute("SELECT 1")
                except psycopg.Error as error:
                    raise translate(error, "writing") from error
        assert 1.0 <= time.monotonic() - began < 1.0 + MACHINE
        assert connection.closed
