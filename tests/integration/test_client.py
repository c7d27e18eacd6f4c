"""Enqueue from Python, with a real PostgreSQL and a real Redis: what exists after a commit, and what does not."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from uuid import UUID

import psycopg
import psycopg2
import pytest

from sidestream import Actions, Job, Jobs, Settings
from sidestream.broker.protocol import Broker, lane
from sidestream.errors import (
    BrokerUnavailable,
    InvalidJob,
    PayloadNotJson,
    SchemaMismatch,
    SettingsError,
    StoreError,
    StoreUnavailable,
    UnknownAction,
    UnsupportedOption,
)
from sidestream.job.codec import Signer, from_ms
from sidestream.job.reference import NO_TAG8, Reference, group_tag, limit_tag
from sidestream.job.rules import Rules
from sidestream.store import schema
from sidestream.wiring.client import build_broker, signing_keys
from tests.integration.conftest import SHORT_WAITS
from tests.support.servers import RedisServer

actions = Actions()


@actions.action("invoice.print", queue="print")
def print_invoice(context: object, invoice_id: int) -> None:
    raise AssertionError("not run here")


def rows(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as other:
        return other.execute("SELECT id, action, queue, key FROM sidestream_job ORDER BY id").fetchall()


def tag(dsn: str) -> bytes:
    with psycopg.connect(dsn) as other:
        return schema.identify(other.cursor()).tag


def claimed(broker: Broker, dsn: str, *queues: str) -> list[int]:
    broker.generation()
    broker.configure(tag(dsn), Rules())
    deliveries = broker.claim("test", [lane(tag(dsn), queue) for queue in queues or ("default",)], free=100)
    return [Reference.unpack(delivery.reference).id for delivery in deliveries]


def insert_invoice(connection: Any, invoice_id: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO invoice VALUES (%s)", (invoice_id,))


# -- with the transaction --------------------------------------------------------------------------------------------


def test_a_committed_block_leaves_its_row_and_publishes_it(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    with jobs.transaction(connection) as tx:
        insert_invoice(connection, 42)
        job_id = tx.enqueue("invoice.print", [42], {"lang": "el"}, key="invoice:42")
        assert rows(dsn) == []
    assert tx.published
    assert rows(dsn) == [(job_id, "invoice.print", "default", "invoice:42")]
    assert claimed(broker, dsn) == [job_id]
    with psycopg.connect(dsn) as other:
        assert other.execute("SELECT id FROM invoice").fetchall() == [(42,)]


def test_an_exception_leaves_nothing(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
    with pytest.raises(RuntimeError, match="no"), jobs.transaction(connection) as tx:  # noqa: PT012
        insert_invoice(connection, 42)
        tx.enqueue("invoice.print")
        raise RuntimeError("no")
    assert rows(dsn) == []
    assert claimed(broker, dsn) == []
    with jobs.transaction(connection) as tx:  # and the connection is usable
        insert_invoice(connection, 42)


def test_rolling_back_a_savepoint_removes_its_jobs(connection: Any, jobs: Jobs, dsn: str) -> None:
    with jobs.transaction(connection) as tx:
        kept = tx.enqueue("a")
        with connection.cursor() as cursor:
            cursor.execute("SAVEPOINT s")
            tx.enqueue("b")
            cursor.execute("ROLLBACK TO SAVEPOINT s")
    assert [row[0] for row in rows(dsn)] == [kept]


def test_a_swallowed_database_error_is_not_taken_for_a_commit(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    with pytest.raises(StoreError, match="no job was enqueued"), jobs.transaction(connection) as tx:  # noqa: PT012
        tx.enqueue("a")
        with pytest.raises((psycopg.Error, psycopg2.Error)):
            insert_invoice(connection, "x")  # type: ignore[arg-type]
    assert rows(dsn) == []
    assert claimed(broker, dsn) == []


def test_many_jobs_go_in_with_one_statement(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
    with jobs.transaction(connection) as tx:
        ids = tx.enqueue_many(jobs.job("a", [number]) for number in range(10_000))
    with psycopg.connect(dsn) as other:
        [(statements,)] = other.execute("SELECT count(DISTINCT created_at) FROM sidestream_job").fetchall()
    assert statements == 1  # how quick it is, is a benchmark's row
    assert ids == sorted(ids)
    assert [row[0] for row in rows(dsn)] == ids
    assert claimed(broker, dsn)[:3] == ids[:3]


def test_an_empty_list_of_jobs_runs_no_statement(connection: Any, jobs: Jobs) -> None:
    with jobs.transaction(connection) as tx:
        assert tx.enqueue_many([]) == []


def test_due_times_reach_row_and_broker(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
    before = datetime.now(UTC)
    with jobs.transaction(connection) as tx:
        later = tx.enqueue("a", delay=3600)
        soon = tx.enqueue("a", run_at=datetime.now(UTC) - timedelta(days=1))
    assert claimed(broker, dsn) == [soon]
    with psycopg.connect(dsn) as other:
        [(run_at,)] = other.execute("SELECT run_at FROM sidestream_job WHERE id = %s", (later,)).fetchall()
    assert timedelta(minutes=59) < run_at.replace(tzinfo=UTC) - before < timedelta(minutes=61)


def test_a_deferred_constraint_that_fails_at_commit_leaves_nothing(connection: Any, jobs: Jobs, dsn: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE late (id int REFERENCES invoice DEFERRABLE INITIALLY DEFERRED)")
    connection.commit()
    with pytest.raises(StoreError) as caught, jobs.transaction(connection) as tx:  # noqa: PT012
        tx.enqueue("a")
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO late VALUES (1)")
    assert isinstance(caught.value.__cause__, psycopg.Error | psycopg2.Error)
    assert rows(dsn) == []


def test_a_lost_backend_raises_a_typed_error(connection: Any, jobs: Jobs, dsn: str) -> None:
    with pytest.raises(StoreUnavailable), jobs.transaction(connection) as tx:  # noqa: PT012
        tx.enqueue("a")
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        tx.enqueue("b")
    assert rows(dsn) == []


def test_an_autocommit_connection_is_refused(connection: Any, jobs: Jobs, dsn: str) -> None:
    connection.autocommit = True
    with pytest.raises(SettingsError, match="autocommit"), jobs.transaction(connection):
        pass
    with pytest.raises(SettingsError, match="autocommit"):
        jobs.enqueue("a", connection=connection)
    assert rows(dsn) == []


def test_a_block_that_ended_accepts_no_more_jobs(connection: Any, jobs: Jobs) -> None:
    with jobs.transaction(connection) as tx:
        pass
    with pytest.raises(StoreError, match="has ended"):
        tx.enqueue("a")


def test_a_psycopg_block_around_ours_is_refused_and_rolled_back(dsn: str, jobs: Jobs) -> None:
    with (
        psycopg.connect(dsn) as connection,
        pytest.raises(StoreError),
        connection.transaction(),
        jobs.transaction(connection) as tx,
    ):
        tx.enqueue("a")
    assert rows(dsn) == []


def test_missing_tables_are_named(database: str, jobs: Jobs) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE sidestream_meta CASCADE")
    with psycopg.connect(database) as connection, pytest.raises(SchemaMismatch), jobs.transaction(connection) as tx:
        tx.enqueue("a")


# -- in somebody else's transaction ----------------------------------------------------------------------------------


def test_a_row_that_the_caller_commits_is_left_to_the_reconciler(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    job_id = jobs.enqueue("a", connection=connection)
    assert rows(dsn) == []
    connection.commit()
    assert [row[0] for row in rows(dsn)] == [job_id]
    assert claimed(broker, dsn) == []


def test_a_caller_hands_over_after_its_own_commit(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
    inserted = jobs.insert(connection, [jobs.job("a"), jobs.job("b")])
    connection.commit()
    assert jobs.hand_over(inserted.publications)
    assert claimed(broker, dsn) == inserted.ids


# -- bad input -------------------------------------------------------------------------------------------------------


def test_a_copy_s_jobs_are_published_as_soon_as_it_is_adopted(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    """By a process that goes on meanwhile; what it knew of tables that were installed anew is forgotten when told."""
    connection.cursor().execute("UPDATE sidestream_meta SET home = 'elsewhere'")
    connection.commit()
    inserted = jobs.insert(connection, [jobs.job("invoice.print", [1])])
    connection.commit()
    assert inserted.publications == []
    schema.adopt(connection.cursor())
    connection.commit()
    for number in range(2):
        inserted = jobs.insert(connection, [jobs.job("invoice.print", [number])])
        connection.commit()
        assert [one.lane for one in inserted.publications] == [lane(tag(dsn), "default")]
        schema.adopt(connection.cursor())  # stands for tables that were removed and made anew
        connection.commit()
        jobs.forget_databases()


def test_a_refused_job_leaves_the_transaction_usable(connection: Any, jobs: Jobs, dsn: str) -> None:
    with jobs.transaction(connection) as tx:
        for error, options in (
            (PayloadNotJson, {"args": [object()]}),
            (InvalidJob, {"delay": -1}),
            (InvalidJob, {"run_at": datetime(2026, 1, 1)}),  # noqa: DTZ001
            (InvalidJob, {"queue": "a queue"}),
            (UnsupportedOption, {"cron": "* * * * *"}),
            (InvalidJob, {"priority": 10}),
            (UnsupportedOption, {"invoice_id": 1}),
        ):
            with pytest.raises(error):
                tx.enqueue("a", **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidJob):
            tx.enqueue_many([Job("a"), Job("b c")])
        kept = tx.enqueue("a")
    assert [row[0] for row in rows(dsn)] == [kept]


def test_priority_group_and_limit_travel_with_the_reference(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    with jobs.transaction(connection) as tx:
        tx.enqueue("a", priority=7)
        first = tx.enqueue("a", priority=0, group="company:2", limit="courier:7", expires_in=60)
    broker.configure(tag(dsn), Rules())
    delivery, _ = broker.claim("test", [lane(tag(dsn), "default")], free=2)
    reference = Reference.unpack(delivery.reference)
    assert (reference.id, delivery.priority) == (first, 0)
    assert (reference.group, reference.limit) == (group_tag("company:2"), limit_tag("courier:7"))


def test_direct_jobs_carry_priority_group_and_limit(jobs: Jobs, broker: Broker) -> None:
    jobs.enqueue_direct("a", priority=2, group="g", limit="courier", expires_in=60)
    [delivery] = broker.claim("test", [lane(NO_TAG8, "default")], free=2)
    reference = Reference.unpack(delivery.reference)
    assert (delivery.priority, reference.group, reference.limit) == (2, group_tag("g"), limit_tag("courier"))
    with pytest.raises(InvalidJob, match="only rows can detect duplicates"):
        jobs.enqueue_direct("a", unique="u")


def test_a_duplicate_s_id_is_the_id_of_the_first(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
    with jobs.transaction(connection) as tx:
        first = tx.enqueue("a", unique="u")
    with jobs.transaction(connection) as tx:
        assert tx.enqueue("a", unique="u") == first
    assert claimed(broker, dsn) == [first]


def test_declared_actions_are_checked_and_give_their_queue(connection: Any, settings: Settings, dsn: str) -> None:
    with Jobs(settings, actions=actions) as jobs:
        with jobs.transaction(connection) as tx:
            tx.enqueue("invoice.print", [1])
            tx.enqueue(print_invoice, [1])
            tx.enqueue(actions.get("invoice.print"), [1], queue="other")
            with pytest.raises(UnknownAction, match=r"invoice\.print"):
                tx.enqueue("invoice.send")
            with pytest.raises(UnknownAction, match="not a declared action"):
                tx.enqueue(len)
        assert [row[1:3] for row in rows(dsn)] == [
            ("invoice.print", "print"),
            ("invoice.print", "print"),
            ("invoice.print", "other"),
        ]


# -- Redis is away ---------------------------------------------------------------------------------------------------


def test_a_stopped_redis_costs_one_short_wait_and_loses_nothing(
    connection: Any, settings: Settings, redis_server: RedisServer, dsn: str
) -> None:
    redis_server.freeze()
    try:
        with Jobs(settings.model_copy(update=SHORT_WAITS)) as jobs:
            costs = []
            for _ in range(20):
                with jobs.transaction(connection) as tx:
                    tx.enqueue("a")
                    started = time.monotonic()
                costs.append(time.monotonic() - started)
            assert not tx.published
            redis_server.thaw()
            deadline = time.monotonic() + 10
            while jobs._relay.broken:
                assert time.monotonic() < deadline, "the breaker never closed"
                threading.Event().wait(0.01)
        assert costs[0] < 2
        assert median(costs[1:]) < 0.05
        assert len(rows(dsn)) == 20
        made = build_broker(settings)
        assert len(claimed(made, dsn)) == 20
        made.close()
    finally:
        redis_server.thaw()


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1/0", "redis://no-such-host.invalid:6379/0", "redis://192.0.2.1:6379/0"]
)
def test_an_unreachable_redis_costs_one_short_wait(connection: Any, settings: Settings, url: str, dsn: str) -> None:
    with Jobs(settings.model_copy(update={**SHORT_WAITS, "redis_url": url})) as jobs:
        costs = []
        for _ in range(5):
            with jobs.transaction(connection) as tx:
                tx.enqueue("a")
                started = time.monotonic()
            costs.append(time.monotonic() - started)
        assert costs[0] < 2
        assert median(costs[1:]) < 0.05
        assert len(rows(dsn)) == 5
        with pytest.raises(BrokerUnavailable, match="was not enqueued"):
            jobs.enqueue_direct("a")


# -- direct ----------------------------------------------------------------------------------------------------------


def test_a_direct_job_needs_no_database(settings: Settings, broker: Broker) -> None:
    with Jobs(settings.model_copy(update={"database_url": None})) as jobs:
        run_at = from_ms(1_700_000_000_123)
        uuid = jobs.enqueue_direct("webhook.store", [{"a": 1}], {"b": None}, key="k", run_at=run_at)
    [delivery] = broker.claim("test", [lane(NO_TAG8, "default")], free=5)
    assert Reference.unpack(delivery.reference).uuid == uuid
    assert delivery.payload is not None
    job = Signer(signing_keys(settings)).open(delivery.payload, uuid).job
    assert job == Job("webhook.store", ({"a": 1},), {"b": None}, "default", "k", run_at, None, uuid)


def test_a_direct_job_repeated_with_its_id_is_one_job(jobs: Jobs, broker: Broker) -> None:
    uuid = UUID(int=5)
    assert jobs.enqueue_direct("a", [1], id=uuid) == jobs.enqueue_direct("a", [1], id=uuid) == uuid
    assert len(broker.claim("test", [lane(NO_TAG8, "default")], free=5)) == 1


@pytest.mark.parametrize("options", [{"id": "5"}, {"timeout": 0}, {"timeout": -1}, {"delay": -1}, {"priority": 10}])
def test_invalid_direct_calls_are_refused(jobs: Jobs, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        jobs.enqueue_direct("a", **options)


class Asynchronous:
    """A stand-in for whatever has an asynchronous commit, SQLAlchemy's AsyncSession for one."""

    autocommit = False

    async def commit(self) -> None: ...


@pytest.mark.parametrize("kind", ["psycopg's", "another's", "none at all"])
def test_an_unsuitable_connection_is_refused_at_the_call(jobs: Jobs, dsn: str, kind: str) -> None:
    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(dsn)

    async def close(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.close()

    with asyncio.Runner() as runner:
        asynchronous = runner.run(connect())
        given = {"psycopg's": asynchronous, "another's": Asynchronous(), "none at all": object()}[kind]
        with pytest.raises(SettingsError, match="cannot be used here; expected a synchronous connection of psycopg 3"):
            jobs.transaction(given)
        with pytest.raises(SettingsError, match="cannot be used here"):
            jobs.enqueue("a", connection=given)
        runner.run(close(asynchronous))
