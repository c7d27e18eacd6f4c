"""The failover broker over a real Valkey and a real PostgreSQL: frozen, killed, and back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from sidestream.broker.failover import FailoverBroker
from sidestream.broker.postgres.broker import PostgresBroker
from sidestream.broker.protocol import Delivery, Publication, from_fallback, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.clock import SystemClock
from sidestream.errors import BrokerUnavailable, StaleGeneration
from sidestream.job.job import Job
from sidestream.job.reference import Reference
from sidestream.job.rules import Rules
from sidestream.store import schema
from sidestream.store.adapter import connect
from sidestream.store.insert import insert
from tests.support.servers import RedisServer

TIMEOUT = 2.0
"""Seconds that Redis may take to answer here: more than a busy machine makes it wait."""


class Bench:
    """Rows, published to Valkey, and claimers that end them as soon as they have them."""

    def __init__(self, dsn: str, redis: RedisServer) -> None:
        self.dsn = dsn
        self.redis = redis
        self.connection = self.connect()
        with self.connection.transaction(), self.connection.cursor() as cursor:
            self.database = schema.install(cursor)
        self.lanes = [lane(self.database.tag, "default")]
        self.primary = RedisBroker(redis.url, timeout=TIMEOUT)
        self.primary.begin_generation()
        self.primary.configure(self.database.tag, Rules())
        self.broker = FailoverBroker(
            self.primary, PostgresBroker(self.connect, self.database), SystemClock(), probe_every=0.05
        )
        self.stopping = threading.Event()
        #: Who waited for Valkey in vain, once for each time.
        self.waited: list[str] = []
        self._claim, self.primary.claim = self.primary.claim, self.claim_primary  # type: ignore[method-assign]
        #: Who gave the job, for each that was ended.
        self.ended: list[tuple[int, bool]] = []

    def connect(self) -> psycopg.Connection[Any]:
        return connect(self.dsn, "sidestream/test/bench", autocommit=True)

    def insert(self, count: int, *, publish: bool = False) -> list[int]:
        with self.connection.cursor() as cursor:
            stored = insert(cursor, [Job("act")] * count)
        if publish:
            self.broker.publish([Publication(job.reference(self.database), self.lanes[0]) for job in stored])
        return [job.id for job in stored]

    def claim_primary(self, worker: str, *args: Any, **options: Any) -> list[Delivery]:
        try:
            return self._claim(worker, *args, **options)
        except BrokerUnavailable:
            self.waited.append(worker)
            raise

    def work(self, name: str) -> None:
        """Claim, end the row, settle; what cannot be settled now stays with Valkey."""
        with self.connect() as connection:
            while not self.stopping.is_set():
                try:
                    found = self.broker.claim(name, self.lanes, free=1)
                except StaleGeneration:
                    self.primary.generation()
                    self.primary.configure(self.database.tag, Rules())
                    continue
                for delivery in found:
                    row_id = Reference.unpack(delivery.reference).id
                    done = connection.execute(
                        "UPDATE sidestream_job SET state = 'done' WHERE id = %s AND state = 'pending'", (row_id,)
                    )
                    if done.rowcount:
                        self.ended.append((row_id, from_fallback(delivery)))
                    try:
                        self.broker.settle([delivery])
                    except BrokerUnavailable:
                        continue
                self.stopping.wait(0.001)

    def open(self) -> int:
        found = self.connection.execute("SELECT count(*) FROM sidestream_job WHERE state = 'pending'").fetchone()
        assert found is not None
        return int(found[0])

    def close(self) -> None:
        self.broker.close()
        self.connection.close()


@pytest.fixture
def bench(database: str, redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(database, redis_server)
    yield made
    made.close()


@pytest.mark.parametrize("accident", ["freeze", "kill"])
def test_jobs_continue_during_a_redis_outage_and_come_from_redis_afterwards(bench: Bench, accident: str) -> None:
    """Claims, settles and probes go on as in a worker; no claimer waits for the absent Redis more than once."""
    before = bench.insert(30, publish=True)
    claimers = [threading.Thread(target=bench.work, args=(f"claimer-{n}",)) for n in range(3)]
    for claimer in claimers:
        claimer.start()
    try:
        wait_until(lambda: bench.open() == 0, "the first jobs")
        assert not any(fallback for _, fallback in bench.ended)
        getattr(bench.redis, accident)()
        during = bench.insert(60)
        wait_until(lambda: bench.open() == 0 and not bench.broker.probe(), "the jobs of the outage")
        assert bench.broker.away_since is not None
        # The claimers go on asking for some time, in which the lease thread probes and every probe fails.
        for _ in range(3):
            assert not bench.broker.probe()
            bench.stopping.wait(0.1)
        if accident == "freeze":
            bench.redis.thaw()
        else:
            bench.redis.start()
        wait_until(bench.broker.probe, "Redis")
        assert len(bench.waited) == len(set(bench.waited)) >= 1, "no claimer waits for an absent Redis more than once"
        after = bench.insert(20, publish=True)
        wait_until(lambda: bench.open() == 0, "the last jobs")
    finally:
        bench.redis.thaw() if accident == "freeze" else bench.redis.start()
        bench.stopping.set()
        for claimer in claimers:
            claimer.join(30)
    assert sorted(row_id for row_id, _ in bench.ended) == before + during + after
    from_rows = {row_id for row_id, fallback in bench.ended if fallback}
    assert from_rows - set(after) == set(during)
    assert len(from_rows) <= len(during) + len(claimers), "each may have been asking PostgreSQL when Redis came back"


def wait_until(true: Callable[[], bool], what: str, deadline: float = 30.0) -> None:
    looked = threading.Event()
    end = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < end, f"never came: {what}"
        looked.wait(0.01)
