"""A reconciler with a real PostgreSQL and Valkey."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from sidestream.broker.protocol import Publication, lane
from sidestream.broker.redis import keys
from sidestream.broker.redis.broker import RedisBroker
from sidestream.errors import BrokerUnavailable
from sidestream.job.job import Job
from sidestream.job.reference import Reference, row_reference
from sidestream.job.rules import Rules
from sidestream.maintenance.reconciler import GRACE, Reconciler
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import schema
from sidestream.store.adapter import connect
from sidestream.store.insert import insert
from tests.support.clock import ManualClock
from tests.support.servers import RedisServer

LEASE = 15.0
RENEW = 3.0
TIMEOUT = 10
"""Seconds that Redis has for an answer: a busy machine may take more than the usual one."""


class Bench:
    """A database with our tables, an empty Valkey, and a reconciler whose clock the test moves."""

    def __init__(self, dsn: str, redis: RedisServer) -> None:
        self.dsn = dsn
        self.redis = redis
        self.connection = self.connect()
        with self.connection.transaction(), self.connection.cursor() as cursor:
            self.database = schema.install(cursor)
        self.clock = ManualClock(datetime.now(UTC))
        self.lane = lane(self.database.tag, "default")
        #: What workers use; the reconciler has an object of its own.
        self.broker = RedisBroker(redis.url, timeout=TIMEOUT)
        self.stores: list[StoreConnection] = []
        self.reconciler = self.another()

    def connect(self) -> psycopg.Connection[Any]:
        return connect(self.dsn, "sidestream/test/bench", autocommit=True)

    def another(self) -> Reconciler:
        store = StoreConnection(self.connect)
        self.stores.append(store)
        return Reconciler(
            RedisBroker(self.redis.url, timeout=TIMEOUT), store, self.clock, lease=LEASE, renew_interval=RENEW
        )

    def insert(self, *jobs: Job) -> list[int]:
        with self.connection.cursor() as cursor:
            return [stored.id for stored in insert(cursor, jobs or [Job("act")])]

    def insert_many(self, count: int, *, first: int = 1) -> None:
        """Insert pending rows with ids from ``first`` on, that were due an hour ago."""
        self.connection.execute(
            "INSERT INTO sidestream_job (id, action, queue, payload, run_at)"
            " SELECT id, 'act', 'default', '{\"v\":1,\"args\":[],\"kwargs\":{}}',"
            " now() AT TIME ZONE 'UTC' - interval '1 hour'"
            " FROM generate_series(%s::bigint, %s::bigint) AS id",
            (first, first + count - 1),
        )
        self.connection.execute("SELECT setval('sidestream_job_id_seq', (SELECT max(id) FROM sidestream_job))")
        self.connection.execute("ANALYZE sidestream_job")

    def publication(self, row_id: int) -> Publication:
        return Publication(row_reference(self.database.tag, row_id, "act", None).pack(), self.lane)

    def steps(self, reconciler: Reconciler | None = None) -> int:
        """Step until there is no more to do at once; return how many steps that took."""
        count = 1
        while (reconciler or self.reconciler).step():
            count += 1
        return count

    def build(self) -> None:
        """Let the first generation begin and be synced."""
        self.steps()
        self.clock.advance(GRACE * RENEW)
        self.steps()
        self.broker.generation()
        self.broker.configure(self.database.tag, Rules())

    def bin(self, client: Any) -> bytes:
        """Return the key of the one bin that holds ready jobs, b"" when there is none."""
        return next(iter(client.keys(f"{keys.PREFIX}flow:*")), b"")

    def answers(self) -> bool:
        try:
            return bool(self.broker.generation().number)
        except BrokerUnavailable:
            return False

    def claimed(self, most: int = 1000) -> list[int]:
        """Claim everything that is ready; return the rows' ids."""
        self.broker.generation()
        self.broker.configure(self.database.tag, Rules())
        found: list[int] = []
        while deliveries := self.broker.claim("worker", [self.lane], free=most):
            found += [Reference.unpack(delivery.reference).id for delivery in deliveries]
        return found

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.connection.close()
        self.broker.close()


@pytest.fixture
def bench(database: str, redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(database, redis_server)
    yield made
    made.close()


def wait_until(true: Any, what: str, deadline: float = 30.0) -> None:
    """Look until it is true, giving the others time in between; fail saying what never came."""
    looked = threading.Event()
    end = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < end, f"never came: {what}"
        looked.wait(0.01)
