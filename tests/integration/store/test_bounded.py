"""A worker's own connection waits no longer than it was told to, and no server ends it between two statements."""

from __future__ import annotations

import time

import psycopg
import pytest

from sidestream.errors import StoreUnavailable
from sidestream.store import adapter
from sidestream.store.adapter import connect, connect_bounded, server_version, sqlstate, translate
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


def test_no_time_out_of_the_server_ends_a_session_between_two_statements(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=7MB")
    with connect(database, "test/0", autocommit=True) as connection:
        settings = ["idle_in_transaction_session_timeout", "idle_session_timeout"]
        if connection.info.server_version >= 170_000:
            settings.append("transaction_timeout")
        for setting in settings:
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting} = '300ms'")
    adapter._server_versions.clear()
    try:
        for _ in range(2):  # the first one learns the version
            with connect(database, "test/0", autocommit=True) as connection:
                shown = [connection.execute(f"SHOW {setting}").fetchone() for setting in [*settings, "work_mem"]]
                assert shown == [("0",)] * len(settings) + [("7MB",)]
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {connection.info.dbname} RESET ALL")


def test_a_server_is_given_the_options_of_its_version(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an option that every server accepts in place of one that only newer ones know."""
    monkeypatch.setattr(adapter, "_TRANSACTION_TIMEOUT", "-c sidestream.newer=yes")
    adapter._server_versions.clear()
    for since, expected in ((999_999, ""), (140_000, "yes")):
        monkeypatch.setattr(adapter, "_HAS_TRANSACTION_TIMEOUT", since)
        for _ in range(2):
            with connect(database, "test/0", autocommit=True) as connection:
                found = connection.execute("SELECT coalesce(current_setting('sidestream.newer', true), '')").fetchone()
                assert (found, server_version(database)) == ((expected,), connection.info.server_version)
            if since == 999_999:
                adapter._server_versions.clear()


def test_an_option_that_the_server_refuses_is_left_out_of_the_next_session(database: str) -> None:
    """The server may have been replaced by an older one."""
    with psycopg.connect(database) as connection:
        if connection.info.server_version >= 170_000:
            pytest.skip("This server knows the option.")
    adapter._server_versions[database] = 170_000
    with pytest.raises(StoreUnavailable, match="transaction_timeout"):
        connect(database, "test/0", autocommit=True)
    connect(database, "test/0", autocommit=True).close()
