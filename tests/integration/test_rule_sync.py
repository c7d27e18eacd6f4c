"""The maintenance of rules and of expiry, on a real PostgreSQL and Valkey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from sidestream.broker.protocol import Place, Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.job import Job
from sidestream.job.reference import NO_TAG8, Reference
from sidestream.job.rules import Limit, Pause, Rules, Scope
from sidestream.maintenance.expiry import ExpiryTask
from sidestream.maintenance.rule_sync import RuleSync
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.maintenance.task import MaintenanceThread
from sidestream.store import rules, schema
from sidestream.store.adapter import connect
from sidestream.store.insert import insert
from tests.support.servers import RedisServer


class Bench:
    """A database, a Valkey, and the maintenance of as many workers as a test asks for."""

    def __init__(self, dsn: str, redis: RedisServer) -> None:
        self.dsn = dsn
        self.redis = redis
        self.connection = self.connect()
        with self.connection.transaction(), self.connection.cursor() as cursor:
            self.database = schema.install(cursor)
        self.cursor = self.connection.cursor()
        self.lane = lane(self.database.tag, "default")
        self.stores: list[StoreConnection] = []
        self.brokers: list[RedisBroker] = []
        self.worker = self.broker()

    def connect(self) -> psycopg.Connection[Any]:
        return connect(self.dsn, "sidestream/test/bench", autocommit=True)

    def broker(self) -> RedisBroker:
        self.brokers.append(RedisBroker(self.redis.url, timeout=10))
        return self.brokers[-1]

    def store(self) -> StoreConnection:
        self.stores.append(StoreConnection(self.connect))
        return self.stores[-1]

    def rule_sync(self) -> RuleSync:
        return RuleSync(self.broker(), self.store(), direct=True)

    def broker_of(self, rule_sync: RuleSync) -> RedisBroker:
        broker = rule_sync._broker
        assert isinstance(broker, RedisBroker)
        return broker

    def put(self, *jobs: Job) -> list[Publication]:
        stored = insert(self.cursor, jobs)
        published = [Publication(job.reference(self.database), self.lane, priority=job.priority) for job in stored]
        self.worker.generation()
        self.worker.publish(published)
        return published

    def claim(self) -> list[int]:
        found = self.worker.claim("w1", [self.lane], free=9)
        return [Reference.unpack(delivery.reference).id for delivery in found]

    def close(self) -> None:
        for store in self.stores:
            store.close()
        for broker in self.brokers:
            broker.close()
        self.connection.close()


@pytest.fixture
def bench(database: str, redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(database, redis_server)
    yield made
    made.close()


def test_nothing_is_claimed_before_the_rules_are_configured(bench: Bench) -> None:
    rule_sync = bench.rule_sync()
    bench.worker.begin_generation()
    bench.put(Job("act"))
    assert bench.claim() == []
    assert not rule_sync.step()
    assert bench.claim() == [1]


def test_a_pause_and_a_resume_govern_after_one_step(bench: Bench) -> None:
    rule_sync = bench.rule_sync()
    rule_sync.step()
    rules.pause(bench.cursor, Pause(queue="default"))
    rule_sync.step()
    bench.put(Job("act"))
    assert bench.claim() == []
    rules.resume(bench.cursor, Pause(queue="default"))
    rule_sync.step()
    assert bench.claim() == [1]


def test_rules_are_restored_right_after_redis_was_emptied(bench: Bench) -> None:
    rules.pause(bench.cursor, Pause(action="act"), by="Ann")
    rule_sync = bench.rule_sync()
    rule_sync.step()
    bench.redis.flushall()
    rule_sync.step()
    bench.put(Job("act"), Job("other"))
    assert bench.claim() == [2], "the pause outlived Redis"


def test_a_disconnected_worker_does_not_restore_old_rules(bench: Bench) -> None:
    cut_off, rule_sync = bench.rule_sync(), bench.rule_sync()
    old = rules.read(bench.cursor)
    cut_off.step()
    rules.pause(bench.cursor, Pause(queue="default"))
    rule_sync.step()
    assert not bench.broker_of(cut_off).configure(bench.database.tag, old)
    cut_off.step()
    bench.put(Job("act"))
    assert bench.claim() == []


def test_unchanged_rules_are_not_configured_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rule_sync, given = bench.rule_sync(), []
    rule_sync.step()
    broker = bench.broker_of(rule_sync)
    monkeypatch.setattr(broker, "configure", lambda database, found: given.append(database))
    for _ in range(5):
        rule_sync.step()
    assert given == []
    rules.set_aging(bench.cursor, 5)
    rule_sync.step()
    assert given == [bench.database.tag, NO_TAG8]


def test_a_worker_without_a_database_configures_empty_rules(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, given = bench.broker(), []
    rule_sync = RuleSync(broker, None, direct=True)
    monkeypatch.setattr(broker, "configure", lambda database, found: given.append((database, found)))
    rule_sync.step()
    rule_sync.step()
    assert given == [(NO_TAG8, Rules())]


def test_a_change_takes_effect_on_two_hosts_within_a_second(bench: Bench) -> None:
    took: list[float] = []
    bench.worker.begin_generation()
    threads = [MaintenanceThread([bench.rule_sync()]) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for expected in (True, False):
            change = rules.pause if expected else rules.resume
            change(bench.cursor, Pause(queue="default"))
            began = time.monotonic()
            waiting = bench.put(Job("act"))[0]
            while (bench.worker.explain(waiting).place is Place.PAUSED) is not expected:
                assert time.monotonic() - began < 5, "the rules never came"
                time.sleep(0.01)
            took.append(time.monotonic() - began)
    finally:
        for thread in threads:
            assert thread.stop()
    assert min(took) < 1.0


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        (
            "('aging', 'global', '', NULL, NULL, 8.64e21)",
            "The aging of global: has no effect: aging=8.64e+21 is not allowed",
        ),
        ("('limit', 'queue', 'a', 1e300, 1, NULL)", "The limit of queue:a has no effect: rate=1e+300 is not allowed"),
        ("('limit', 'queue', 'a b', 1, 1, NULL)", None),
        ("('pause', 'queue', 'a b', NULL, NULL, NULL)", "The pause of queue:a b has no effect: The queue name 'a b'"),
    ],
)
def test_a_stored_rule_out_of_range_is_skipped_and_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture, numbers: str, problem: str | None
) -> None:
    bench.cursor.execute(
        f"INSERT INTO sidestream_rule (kind, scope, name, rate, burst, seconds) VALUES {numbers}"  # a constant
    )
    bench.worker.begin_generation()
    rule_sync = bench.rule_sync()
    rules.pause(bench.cursor, Pause(queue="default"))
    for _ in range(3):
        rule_sync.step()
        rule_sync._steps = 10**6  # the rules are given again although they did not change
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [one.startswith(problem or "-") for one in warned] == ([] if problem is None else [True])
    bench.put(Job("a"))
    assert bench.claim() == []
    [entry] = [entry for entry in rules.entries(bench.cursor) if entry.kind != "pause" or entry.name != "default"]
    assert (entry.problem is None) == (problem is None)


def test_a_limit_set_in_the_table_is_the_brokers(bench: Bench) -> None:
    rule_sync = bench.rule_sync()
    rule_sync.step()
    bench.worker.generation()
    bench.worker.mark_synced(bench.database.tag)
    rules.set_limit(bench.cursor, Scope.KEY, "courier", Limit(concurrency=1))
    rule_sync.step()
    bench.put(*(Job("act", limit=limit) for limit in ("courier:1", "courier:1", "courier:2")))
    assert bench.claim() == [1, 3]


def test_expired_jobs_are_cancelled_and_removed_from_the_broker(bench: Bench) -> None:
    bench.rule_sync().step()
    past = datetime.now(UTC) - timedelta(minutes=1)
    expiry = ExpiryTask(bench.broker(), bench.store())
    bench.brokers[-1].generation()
    expired, waiting = bench.put(Job("act", expires_at=past), Job("act"))
    assert not expiry.step()
    assert bench.worker.locate([expired, waiting]) == [Place.NOWHERE, Place.READY]
    assert bench.claim() == [2]
    bench.put(*[Job("act", expires_at=past)] * 150)
    assert expiry.step()
    assert not expiry.step()
    assert bench.claim() == []
