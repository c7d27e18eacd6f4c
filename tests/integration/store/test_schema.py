"""Installing, recognising, connecting, and what errors mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import psycopg
import pytest

from sidestream.errors import ForeignDatabase, SchemaMismatch, SettingsError, StoreError, StoreUnavailable
from sidestream.job.job import Job
from sidestream.store import acquire, adapter, schema
from sidestream.store.insert import insert
from tests.integration.store.conftest import Connect
from tests.integration.store.sessions import (
    ERRORS,
    Session,
    beside,
    until_busy,
    until_gone,
    until_waiting,
    wait_until,
)
from tests.support.servers import PostgresServer


def test_install_is_done_once_whoever_does_it(fresh: Connect) -> None:
    first, second, watcher = (fresh(lock_timeout="20s") for _ in range(3))
    first.execute("BEGIN")
    installed = schema.install(first.cur)
    second.execute("BEGIN")
    other = beside(lambda: schema.install(second.cur))
    until_waiting(watcher, second.pid)
    first.commit()
    assert other.result(20) == installed == schema.identify(watcher.cur)
    second.commit()
    assert schema.install(watcher.cur) == installed
    assert installed.tag == installed.uuid.bytes[:8]


def test_missing_tables_are_one_sentence_and_the_transaction_survives(fresh: Connect) -> None:
    session = fresh()
    session.begin()
    with pytest.raises(SchemaMismatch, match=r"no Sidestream tables.*run: sidestream db init"):
        schema.identify(session.cur)
    assert session.value("SELECT 1") == 1
    with pytest.raises(ERRORS) as caught:
        insert(session.cur, [Job("test.act")])
    assert isinstance(adapter.translate(caught.value, "enqueue a job"), SchemaMismatch)


def test_tables_of_a_range_of_releases_are_used(fresh: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    session = fresh()
    installed = schema.install(session.cur)
    newer = {"version": schema.SCHEMA_VERSION + 3}
    session.execute("UPDATE sidestream_meta SET version = %(version)s", newer)
    session.execute("ALTER TABLE sidestream_job ADD COLUMN colour text, ADD COLUMN depth integer DEFAULT 3")
    assert schema.identify(session.cur) == installed == schema.install(session.cur)
    session.done(session.one())
    # The next release looks at the tables of this one.
    session.execute("UPDATE sidestream_meta SET version = %(version)s", {"version": schema.SCHEMA_VERSION})
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    assert schema.identify(session.cur) == installed == schema.install(session.cur)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "SET usable_from = 9, version = 11",
            r"version 11, which releases for version 9 and later.*upgrade Sidestream",
        ),
        ("SET version = 0", r"version 0 of a release that this one cannot use.*db init"),
    ],
)
def test_tables_of_other_releases_are_refused(fresh: Connect, change: str, said: str) -> None:
    session = fresh()
    session.begin()
    schema.install(session.cur)
    session.execute(f"UPDATE sidestream_meta {change}")
    for ask in (schema.identify, schema.install):
        with pytest.raises(SchemaMismatch, match=said):
            ask(session.cur)
    session.execute("DELETE FROM sidestream_meta")
    with pytest.raises(SchemaMismatch, match="empty"):
        schema.identify(session.cur)


def test_tables_from_before_the_first_release_are_refused(fresh: Connect) -> None:
    session = fresh()
    schema.install(session.cur)
    session.execute("ALTER TABLE sidestream_meta DROP COLUMN usable_from")
    session.execute("UPDATE sidestream_meta SET version = 3")
    with pytest.raises(SchemaMismatch, match="make them anew"):
        schema.install(session.cur)


def test_the_settings_of_the_tables_are_set(a: Session) -> None:
    options = dict(
        option.split("=")
        for (option,) in a.all("SELECT unnest(reloptions) FROM pg_class WHERE oid = 'sidestream_job'::regclass")
    )
    assert float(options["autovacuum_vacuum_scale_factor"]) <= 0.02
    assert options["autovacuum_vacuum_cost_delay"] == "0"


CONFLICTS: list[tuple[str, Callable[[Session, Session, int], object]]] = [
    ("40001", lambda a, b, job: _conflict(a, b, job)),
    ("55P03", lambda a, b, job: (a.hold(job), acquire.state_when_unlocked(b.cur, job, timeout=0.01))),
    ("40P01", lambda a, b, job: _deadlock(a, b)),
]


@pytest.mark.parametrize(("code", "cause"), CONFLICTS)
def test_conflicts_are_told_by_their_code(
    a: Session, b: Session, code: str, cause: Callable[[Session, Session, int], object]
) -> None:
    with pytest.raises(ERRORS) as caught:
        cause(a, b, a.one())
    assert adapter.sqlstate(caught.value) == code
    assert code in adapter.CONFLICTS
    translated = adapter.translate(caught.value, "writing")
    assert type(translated) is StoreError
    assert code in str(translated)


def _conflict(a: Session, b: Session, job: int) -> None:
    b.begin()
    b.value("SELECT count(*) FROM sidestream_job")
    a.done(job)
    acquire.acquire_job(b.cur, job)


def _deadlock(a: Session, b: Session) -> None:
    for session in (a, b):
        session.execute("SET deadlock_timeout = '10ms'; SET lock_timeout = '10s'; BEGIN")
    a.execute("SELECT pg_advisory_xact_lock(1)")
    b.execute("SELECT pg_advisory_xact_lock(2)")
    waiting = beside(lambda: a.execute("SELECT pg_advisory_xact_lock(2)"))
    try:
        b.execute("SELECT pg_advisory_xact_lock(1)")
    except ERRORS:
        waiting.result(10)
        raise
    b.rollback()
    error = waiting.exception(10)
    assert error is not None
    raise error


def test_a_terminated_backend_means_unavailable(a: Session, b: Session) -> None:
    b.value("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": a.pid})
    for doing in ("the first statement", "the next one"):  # the second finds the connection closed
        with pytest.raises(ERRORS) as caught:
            a.insert(Job("test.act"))
        translated = adapter.translate(caught.value, doing)
        assert isinstance(translated, StoreUnavailable)
        assert doing in str(translated)
        assert "\n" not in str(translated)


def test_a_server_killed_in_the_middle_of_a_statement_means_unavailable(
    driver: str, store_dsn: str, postgres: PostgresServer
) -> None:
    a, b = Session(driver, store_dsn), Session(driver, store_dsn)
    asleep = beside(lambda: a.execute("SELECT pg_sleep(60)"))
    until_busy(b, a.pid)
    postgres.kill()
    error = asleep.exception(20)
    assert isinstance(error, ERRORS)
    assert isinstance(adapter.translate(error, "running a job"), StoreUnavailable)
    a.connection.close()
    b.connection.close()


def test_nobody_there_means_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="PostgreSQL does not answer \\(connecting\\)"):
        adapter.connect("postgresql://127.0.0.1:1/nothing", "test", autocommit=True)


def test_a_missing_database_means_unavailable(postgres: PostgresServer) -> None:
    with pytest.raises(StoreUnavailable, match="nowhere"):
        adapter.connect(postgres.dsn("nowhere"), "test", autocommit=True)


def test_bad_addresses_and_names_are_settings_errors(postgres: PostgresServer) -> None:
    with pytest.raises(SettingsError, match="cannot be read") as caught:
        adapter.connect("postgresql://u:secret@h/d?no=option", "test", autocommit=True)
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="63 bytes"):
        adapter.connect(postgres.dsn(), "sidestream/" + "x" * 60 + "/0", autocommit=True)


def test_errors_that_are_not_a_databases_are_not_called_so() -> None:
    known = StoreUnavailable("It is known already.")
    assert adapter.translate(known, "writing") is known
    assert type(adapter.translate(TypeError("no such argument"), "writing")) is StoreError
    assert isinstance(adapter.translate(OSError("no route"), "writing"), StoreUnavailable)
    assert adapter.sqlstate(TypeError()) is None


def test_a_connection_notices_a_vanished_peer(store_dsn: str) -> None:
    with adapter.connect(store_dsn, "sidestream/host-1/0", autocommit=True) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()
            for name in ("client_connection_check_interval", "tcp_keepalives_idle", "application_name")
        }
        parameters = connection.info.get_parameters()
    assert shown == {
        "client_connection_check_interval": ("1s",),
        "tcp_keepalives_idle": ("5",),
        "application_name": ("sidestream/host-1/0",),
    }
    assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == ("5", "10000")


def test_what_the_address_says_itself_wins(store_dsn: str) -> None:
    dsn = f"{store_dsn}?keepalives_idle=99&options=-c%20client_connection_check_interval%3D7s%20-c%20work_mem%3D1MB"
    with adapter.connect(dsn, "test", autocommit=False, connection_class=Own) as connection:
        assert isinstance(connection, Own)
        assert connection.execute("SHOW client_connection_check_interval").fetchone() == ("7s",)
        assert connection.execute("SHOW work_mem").fetchone() == ("1MB",)
        assert connection.info.get_parameters()["keepalives_idle"] == "99"


class Own(psycopg.Connection[tuple[object, ...]]):
    """As the executor's guarded connection."""


CLIENT = """
import sys
from sidestream.store import adapter
connection = adapter.connect(sys.argv[1], "sidestream/host-1/0", autocommit=True)
print(connection.info.backend_pid, flush=True)
connection.execute("SELECT pg_sleep(60)")
"""


@pytest.mark.parametrize("driver", ["psycopg"], indirect=True)
def test_the_backend_of_a_killed_client_ends_by_itself(connect: Connect, store_dsn: str) -> None:
    """Guard: ``client_connection_check_interval``; without it the backend sleeps on for a minute."""
    watcher = connect()
    command = [sys.executable, "-c", CLIENT, store_dsn]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        until_busy(watcher, pid)
        os.kill(client.pid, signal.SIGKILL)
    until_gone(watcher, pid)


def test_wait_until_says_what_never_came_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.integration.store.sessions.DEADLINE", 0.01)
    with pytest.raises(AssertionError, match="never came true that pigs fly"):
        wait_until(lambda: False, "pigs fly")


def test_a_copy_runs_nothing_until_it_is_adopted(fresh: Connect) -> None:
    session = fresh()
    original = schema.install(session.cur)
    session.execute("UPDATE sidestream_meta SET home = 'elsewhere/1'")
    with pytest.raises(ForeignDatabase, match=r"is a copy.*sidestream db adopt"):
        schema.identify(session.cur)
    assert schema.identify(session.cur, allow_copy=True) == schema.Database(original.uuid, copied=True)
    adopted = schema.adopt(session.cur)
    assert adopted.uuid != original.uuid
    assert schema.identify(session.cur) == adopted
    assert not adopted.copied


def test_an_adopted_database_keeps_the_idempotency_keys_of_the_jobs_that_are_in_it(fresh: Connect) -> None:
    """A courier that was called before the move must not ship again; a copy's later job 3 is not the original's."""
    session = fresh()
    first = schema.install(session.cur)
    insert(session.cur, [Job("act"), Job("act")])
    second = schema.adopt(session.cur)
    insert(session.cur, [Job("act")])
    third = schema.adopt(session.cur)
    assert schema.identify(session.cur) == third
    assert [third.origin_of(one) for one in (1, 2, 3, 4)] == [first.uuid, first.uuid, second.uuid, third.uuid]
    assert len({first.uuid, second.uuid, third.uuid}) == 3


def test_a_database_without_a_name_takes_that_of_its_first_worker(fresh: Connect) -> None:
    session = fresh()
    installed = schema.install(session.cur)
    assert schema.settle_in(session.cur, None) == installed
    assert schema.settle_in(session.cur, "production") == installed
    assert session.value("SELECT instance FROM sidestream_meta") == "production"


@pytest.mark.parametrize(("instance", "said"), [("staging", "instance 'staging'"), (None, "has no name")])
def test_a_physical_copy_is_told_by_the_name_of_its_worker(fresh: Connect, instance: str | None, said: str) -> None:
    session = fresh()
    schema.install(session.cur)
    schema.settle_in(session.cur, "production")
    with pytest.raises(ForeignDatabase, match=f"belongs to the instance 'production'.*{said}"):
        schema.settle_in(session.cur, instance)
    adopted = schema.adopt(session.cur, instance)
    assert schema.settle_in(session.cur, instance) == adopted


def test_a_database_of_the_same_name_needs_no_adoption_after_pg_upgrade(fresh: Connect) -> None:
    session = fresh()
    installed = schema.install(session.cur)
    schema.settle_in(session.cur, "production")
    session.execute("UPDATE sidestream_meta SET home = 'the old cluster/1'")
    with pytest.raises(ForeignDatabase):
        schema.settle_in(session.cur, "staging")
    assert schema.settle_in(session.cur, "production") == installed
    assert schema.identify(session.cur) == installed, "everybody else goes by its new home"


def test_without_a_name_the_home_decides(fresh: Connect) -> None:
    session = fresh()
    schema.install(session.cur)
    session.execute("UPDATE sidestream_meta SET home = 'elsewhere/1'")
    for instance in (None, "production"):
        with pytest.raises(ForeignDatabase, match="is a copy"):
            schema.settle_in(session.cur, instance)
