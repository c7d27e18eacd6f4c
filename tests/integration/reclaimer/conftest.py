"""A reclaimer with a real PostgreSQL and Valkey, and workers that die when the test says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from sidestream.broker.failover import owners_grace
from sidestream.broker.protocol import Delivery, Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.job import Job
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import NO_TAG8, Reference, direct_reference, row_reference
from sidestream.job.rules import Rules
from sidestream.job.uuids import new_uuid
from sidestream.maintenance.lease_reclaimer import LeaseReclaimer
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import attempts, queries, schema
from sidestream.store.adapter import connect
from sidestream.store.insert import insert
from tests.support.clock import ManualClock
from tests.support.servers import RedisServer

LEASE = 15.0
RENEW = 3.0
TIMEOUT = 10
"""Seconds that Redis has for an answer: a busy machine may take more than the usual one."""
DEAD = "host-1-dead"
US = "host-2-us"


class Bench:
    """Jobs that a dead worker held, and the reclaimer of another one; the test moves the clock of both."""

    def __init__(self, dsn: str, redis: RedisServer) -> None:
        self.dsn = dsn
        self.redis = redis
        self.connection = self.session("bench")
        with self.connection.transaction(), self.connection.cursor() as cursor:
            self.database = schema.install(cursor)
        self.clock = ManualClock(datetime.now(UTC))
        self.lanes = [lane(self.database.tag, "default"), lane(NO_TAG8, "default")]
        self.broker = self.another_broker()
        self.broker.begin_generation()
        for database in (self.database.tag, NO_TAG8):
            self.broker.configure(database, Rules())
        self.store = StoreConnection(lambda: connect(dsn, f"sidestream/{US}/maintenance", autocommit=True))
        #: What the slots of dead workers say; a worker that is not here is of another host.
        self.slots: dict[str, frozenset[bytes]] = {}
        self.announced: set[str] = set()
        self.reclaimer = self.another(US)

    def session(self, name: str) -> psycopg.Connection[Any]:
        return connect(self.dsn, f"sidestream/{name}/0", autocommit=True)

    def another_broker(self) -> RedisBroker:
        return RedisBroker(self.redis.url, timeout=TIMEOUT, clock_ms=lambda: int(self.clock.now().timestamp() * 1000))

    def another(self, worker: str) -> LeaseReclaimer:
        return LeaseReclaimer(
            self.broker,
            self.store,
            self.clock,
            worker=worker,
            lanes=self.lanes,
            dead_workers=self.slots.get,
            alive=self.announced.__contains__,
            lease=LEASE,
            grace=owners_grace(RENEW),
        )

    def insert(self, count: int = 1) -> list[int]:
        with self.connection.cursor() as cursor:
            ids = [stored.id for stored in insert(cursor, [Job("act")] * count)]
        self.broker.publish([Publication(self.reference(row_id), self.lanes[0]) for row_id in ids])
        return ids

    def enqueue_direct(self, count: int = 1) -> list[bytes]:
        references = [direct_reference(new_uuid(), "act", None).pack() for _ in range(count)]
        self.broker.publish([Publication(reference, self.lanes[1], payload=b"signed") for reference in references])
        return references

    def reference(self, row_id: int) -> bytes:
        return row_reference(self.database.tag, row_id, "act", None).pack()

    def claim(self, worker: str, most: int = 10_000) -> list[Delivery]:
        return self.broker.claim(worker, self.lanes, free=most)

    def die(self, *running: bytes, known: bool = True, worker: str = DEAD) -> None:
        """The worker that claimed is gone, and these ran in its children."""
        if known:
            self.slots[worker] = frozenset(running)

    def run_out(self, leases: float = 1.0) -> None:
        """Let time pass as it does: in small steps, in which we go on reclaiming."""
        for _ in range(int(leases * 15) + 1):
            self.clock.advance(LEASE / 15)
            self.step()

    def step(self) -> None:
        while self.reclaimer.step():
            pass

    def row(self, row_id: int) -> queries.Row:
        with self.connection.cursor() as cursor:
            found = queries.job(cursor, row_id)
        assert found is not None
        return found[0]

    def history(self, row_id: int) -> list[tuple[str, str]]:
        with self.connection.cursor() as cursor:
            return [(entry.event.value, entry.worker) for entry in attempts.of_job(cursor, row_id)]

    def start(self, row_id: int, worker: str = DEAD) -> None:
        """What a worker writes of a job that runs for a while."""
        with self.connection.cursor() as cursor:
            attempts.record(cursor, row_id, worker, 0, "started", 'running|{"seconds": 0.5}')

    def start_alone(self, row_id: int, worker: str = DEAD, max_attempts: int = 5) -> None:
        """What a worker writes before it runs a job alone."""
        reason = Reason(ReasonCode.ALONE, {"max_attempts": max_attempts})
        with self.connection.cursor() as cursor:
            attempts.record(cursor, row_id, worker, 0, "started", reason.stored())

    def claimable(self) -> list[int]:
        return [Reference.unpack(delivery.reference).id for delivery in self.claim("next")]

    def close(self) -> None:
        self.store.close()
        self.connection.close()
        self.broker.close()


@pytest.fixture
def bench(database: str, redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(database, redis_server)
    yield made
    made.close()


def charges(row: queries.Row) -> tuple[int, int, int]:
    return row.attempts, row.crashes, row.suspects
