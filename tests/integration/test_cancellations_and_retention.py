"""Cancellation, retention and the store connection of the maintenance, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from sidestream.errors import SchemaMismatch, StoreError, StoreUnavailable
from sidestream.job.job import Job
from sidestream.maintenance.cancellations import CancellationTask
from sidestream.maintenance.retention import RetentionTask
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import attempts, control, schema
from sidestream.store.adapter import connect
from sidestream.store.insert import insert
from sidestream.store.locks import job_lock, lock_tag, unlock_tag
from tests.support.servers import PostgresServer

DAY = 86_400


class Bench:
    """A database with our tables, and the connection that maintenance share."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = self.connect()
        with self.connection.transaction(), self.connection.cursor() as cursor:
            self.database = schema.install(cursor)
        self.store = StoreConnection(self.connect)
        self.stopped: list[int] = []
        self.runs_here = True
        self.cancellations = CancellationTask(self.store, stop_running=self.stop_running)

    def connect(self) -> psycopg.Connection[Any]:
        return connect(self.dsn, "sidestream/test/bench", autocommit=True)

    def stop_running(self, job_id: int) -> bool:
        self.stopped.append(job_id)
        return self.runs_here

    def insert(self, count: int = 1) -> list[int]:
        with self.connection.cursor() as cursor:
            return [stored.id for stored in insert(cursor, [Job("act")] * count)]

    def run(self, row_id: int) -> psycopg.Connection[Any]:
        """Hold the row as a job that runs does."""
        child = self.connect()
        child.execute("BEGIN")
        child.execute("SELECT FROM sidestream_job WHERE id = %s FOR NO KEY UPDATE", (row_id,))
        return child

    def cancel(self, row_id: int) -> None:
        with self.connection.cursor() as cursor:
            control.cancel(cursor, row_id)

    def pending(self) -> list[int]:
        with self.connection.cursor() as cursor:
            return [request.job_id for request in control.pending(cursor)]

    def state(self, row_id: int) -> str | None:
        found = self.connection.execute("SELECT state FROM sidestream_job WHERE id = %s", (row_id,)).fetchone()
        return None if found is None else found[0]

    def close(self) -> None:
        self.store.close()
        self.connection.close()


@pytest.fixture
def bench(database: str) -> Iterator[Bench]:
    made = Bench(database)
    yield made
    made.close()


def test_a_running_job_is_stopped_and_then_cancelled(bench: Bench) -> None:
    [row_id] = bench.insert()
    child = bench.run(row_id)
    bench.cancel(row_id)
    assert not bench.cancellations.step()
    assert bench.stopped == [row_id]
    assert (bench.state(row_id), bench.pending()) == ("pending", [row_id])
    child.execute("ROLLBACK")  # close() alone does not wait until the lock is free
    child.close()
    bench.cancellations.step()
    assert (bench.state(row_id), bench.pending()) == ("cancelled", [])
    bench.cancellations.step()
    assert bench.stopped == [row_id], "a free row is cancelled without another kill"


def test_a_job_between_two_of_its_transactions_is_stopped_and_then_cancelled(bench: Bench) -> None:
    [row_id] = bench.insert()
    with bench.connect() as child, child.cursor() as cursor:
        assert lock_tag(cursor, job_lock(row_id))
        bench.cancel(row_id)
        bench.cancellations.step()
        assert bench.stopped == [row_id]
        assert (bench.state(row_id), bench.pending()) == ("pending", [row_id])
        assert unlock_tag(cursor, job_lock(row_id))
    bench.cancellations.step()
    assert (bench.state(row_id), bench.pending()) == ("cancelled", [])


def test_a_job_that_commits_before_its_cancellation_stays_done(bench: Bench) -> None:
    [row_id] = bench.insert()
    child = bench.run(row_id)
    bench.cancel(row_id)
    bench.cancellations.step()
    child.execute("UPDATE sidestream_job SET state = 'done' WHERE id = %s", (row_id,))
    child.execute("COMMIT")
    child.close()
    bench.cancellations.step()
    assert (bench.state(row_id), bench.pending()) == ("done", [])


@pytest.mark.parametrize("runs", [False, True])
def test_a_job_that_is_retried_while_its_cancellation_is_applied_stays_pending(bench: Bench, runs: bool) -> None:
    [row_id] = bench.insert()
    child = bench.run(row_id)
    bench.cancel(row_id)
    child.execute("UPDATE sidestream_job SET state = 'failed' WHERE id = %s", (row_id,))
    child.execute("COMMIT")
    child.close()
    with bench.connection.cursor() as cursor:
        [request] = control.pending(cursor)
        assert control.retry(cursor, row_id).applied
        child = bench.run(row_id) if runs else bench.connect()
        bench.cancellations._carry_out(cursor, request)
    child.close()
    assert (bench.state(row_id), bench.pending(), bench.stopped) == ("pending", [], [])


def test_every_worker_reads_the_request_whichever_runs_the_job(bench: Bench) -> None:
    [row_id] = bench.insert()
    child = bench.run(row_id)
    bench.cancel(row_id)
    bench.runs_here = False
    bench.cancellations.step()
    bench.cancellations.step()
    assert bench.stopped == [row_id, row_id]
    assert bench.pending() == [row_id]
    child.close()


def test_a_request_whose_row_is_gone_is_handled(bench: Bench) -> None:
    [row_id] = bench.insert()
    child = bench.run(row_id)
    bench.cancel(row_id)
    child.execute("DELETE FROM sidestream_job WHERE id = %s", (row_id,))
    child.execute("COMMIT")
    child.close()
    bench.cancellations.step()
    assert (bench.state(row_id), bench.pending()) == (None, [])


def test_old_jobs_are_removed_in_batches_with_their_history(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestream.maintenance.retention.PRUNE_LOT", 4)
    ids = bench.insert(14)
    with bench.connection.cursor() as cursor:
        for row_id in ids:
            attempts.record(cursor, row_id, "host", 0, "started")
    bench.connection.execute(
        "UPDATE sidestream_job SET created_at = created_at - interval '60 days', run_at = run_at - interval '60 days',"
        " ended_at = (now() AT TIME ZONE 'UTC') - interval '40 days',"
        " state = CASE WHEN id = ANY(%s) THEN 'failed' ELSE 'done' END WHERE id = ANY(%s)",
        (ids[:2], ids[:12]),
    )
    task = RetentionTask(bench.store, done_retention=30 * DAY, failed_retention=None)
    steps = 1
    while task.step():
        steps += 1
    assert steps == 3
    left = [row[0] for row in bench.connection.execute("SELECT id FROM sidestream_job ORDER BY id")]
    assert left == [*ids[:2], *ids[12:]]
    history = [row[0] for row in bench.connection.execute("SELECT job_id FROM sidestream_attempt ORDER BY job_id")]
    assert history == left
    assert not RetentionTask(bench.store, done_retention=30 * DAY, failed_retention=35 * DAY).step()
    assert [bench.state(row_id) for row_id in ids[:2]] == [None, None]


def test_the_store_connection_identifies_its_database(bench: Bench) -> None:
    assert bench.store.database() == bench.database


def test_the_store_connection_reopens_after_postgresql_was_away(bench: Bench, postgres: PostgresServer) -> None:
    with bench.store.cursor("looking") as cursor:
        cursor.execute("SELECT 1")
    postgres.kill()
    for _ in range(2):
        with pytest.raises(StoreUnavailable), bench.store.cursor("looking") as cursor:
            cursor.execute("SELECT 1")
    postgres.start()
    with bench.store.cursor("looking") as cursor:
        assert cursor.execute("SELECT 1").fetchone() == (1,)


def test_a_refused_statement_keeps_the_connection_and_undoes_its_transaction(bench: Bench) -> None:
    with bench.store.cursor("looking") as cursor:
        pid = cursor.connection.info.backend_pid

    def refused() -> None:
        with bench.store.transaction("looking") as cursor:
            cursor.execute("DELETE FROM sidestream_meta")
            cursor.execute("SELECT 1 / 0")

    with pytest.raises(StoreError, match="looking"):
        refused()
    assert bench.store.database() == bench.database
    with bench.store.cursor("looking") as cursor:
        assert cursor.connection.info.backend_pid == pid
        assert cursor.execute("SELECT count(*) FROM sidestream_meta").fetchone() == (1,)


def test_missing_tables_are_reported_in_one_sentence(database: str) -> None:
    store = StoreConnection(lambda: connect(database, "sidestream/test/bench", autocommit=True))
    with pytest.raises(SchemaMismatch):
        store.database()
    store.close()


def test_another_database_behind_the_same_address_is_refused(bench: Bench) -> None:
    assert bench.store.database() == bench.database
    bench.store.close()
    bench.connection.execute(
        "DROP TABLE sidestream_job, sidestream_attempt, sidestream_job_record, sidestream_control, sidestream_meta,"
        " sidestream_rule, sidestream_worker"
    )
    with bench.connection.transaction(), bench.connection.cursor() as cursor:
        schema.install(cursor)
    with pytest.raises(SchemaMismatch, match="restart the worker"), bench.store.cursor("looking"):
        pass
