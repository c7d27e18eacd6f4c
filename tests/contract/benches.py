"""The brokers that the contract suite runs on, each around one clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from threading import Event

import psycopg

from sidestream.broker.memory import MemoryBroker
from sidestream.broker.memory.server import MemoryServer
from sidestream.broker.postgres.broker import PostgresBroker
from sidestream.broker.protocol import Broker, Delivery, Publication
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.reference import Reference
from sidestream.store import adapter, schema
from tests.support.broker_contract import LEASE_MS, NAMES
from tests.support.servers import RedisServer

_numbers = count()


class MovedClock:
    """A clock in ms that only a test moves."""

    def __init__(self) -> None:
        self.ms = int(time.time() * 1000)

    def __call__(self) -> int:
        return self.ms


class MemoryBench:
    """The memory broker."""

    database = b"testbase"
    many = 20_000

    def __init__(self) -> None:
        self.clock = MovedClock()
        self.contents = MemoryServer(self.clock)
        self.broker: Broker = self._open()

    def _open(self) -> Broker:
        return MemoryBroker(lease_ms=LEASE_MS, server=self.contents)

    def second(self) -> Broker:
        broker = self._open()
        broker.generation()
        return broker

    def wipe(self) -> None:
        self.contents.empty()

    def now(self) -> int:
        return self.clock.ms

    def advance(self, ms: int) -> None:
        self.clock.ms += ms

    def put(self, jobs: Sequence[Publication]) -> None:
        self.broker.publish(jobs)

    def end(self, deliveries: Sequence[Delivery]) -> None:
        assert self.broker.settle(deliveries) == []

    def somebody_waits(self) -> bool:
        return True

    def close(self) -> None:
        self.broker.close()


class RedisBench(MemoryBench):
    """The Redis broker under a prefix of its own."""

    def __init__(self, server: RedisServer, many: int = MemoryBench.many) -> None:
        self.clock = MovedClock()
        self.server = server
        self.many = many
        self.prefix = f"test{next(_numbers)}:{{s0}}:"
        self.brokers: list[RedisBroker] = []
        self.broker = self._open()

    def _open(self) -> Broker:
        # The machine may be busy: a time-out of a second would fail a test of something else.
        broker = RedisBroker(self.server.url, timeout=10, lease_ms=LEASE_MS, prefix=self.prefix, clock_ms=self.clock)
        self.brokers.append(broker)
        return broker

    def somebody_waits(self) -> bool:
        with self.server.client() as client:
            return bool(client.exists(f"{self.prefix}idle"))

    def wipe(self) -> None:
        with self.server.client() as client:
            client.delete(*self.keys())

    def keys(self) -> list[bytes]:
        with self.server.client() as client:
            return list(client.scan_iter(f"{self.prefix}*", count=1000))

    def close(self) -> None:
        for broker in self.brokers:
            broker.close()
        if keys := self.keys():
            with self.server.client() as client:
                client.delete(*keys)


class PostgresBench(MemoryBench):
    """The PostgreSQL broker over a table of its own; its clock is the real one."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = self._connect()
        with self.connection.cursor() as cursor:
            self.identity = schema.install(cursor)
        self.database = self.identity.tag
        self.brokers: list[PostgresBroker] = []
        self.broker = self.second()

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return adapter.connect(self.dsn, "contract", autocommit=True)

    def second(self) -> Broker:
        broker = PostgresBroker(self._connect, self.identity)
        self.brokers.append(broker)
        return broker

    def now(self) -> int:
        return int(time.time() * 1000)

    def advance(self, ms: int) -> None:
        Event().wait(ms / 1000)

    def put(self, jobs: Sequence[Publication]) -> None:
        rows = [
            (
                named.id,
                job.lane.partition(":")[2],
                named.key.hex() if any(named.key) else None,
                job.due_ms,
                job.attempted,
                job.priority,
                NAMES.get(named.action, "act"),
                NAMES.get(named.group) if any(named.group) else None,
                NAMES.get(named.limit) if named.limit else None,
            )
            for job in jobs
            for named in [Reference.unpack(job.reference)]
        ]
        with self.connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO sidestream_job"
                " (id, action, queue, key, payload, run_at, attempts, priority, group_name, limit_key)"
                " SELECT id, action, queue, key, '{}', CASE due WHEN 0 THEN statement_timestamp() AT TIME ZONE 'UTC'"
                " ELSE to_timestamp(due / 1000.0) AT TIME ZONE 'UTC' END, attempted::int, priority,"
                " group_name, limit_key FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::bool[],"
                " %s::smallint[], %s::text[], %s::text[], %s::text[])"
                " AS new (id, queue, key, due, attempted, priority, action, group_name, limit_key)",
                [list(column) for column in zip(*rows, strict=True)],
            )
        for broker in self.brokers:
            broker.publish(jobs)

    def end(self, deliveries: Sequence[Delivery]) -> None:
        with self.connection.cursor() as cursor:
            ids = [Reference.unpack(delivery.reference).id for delivery in deliveries]
            cursor.execute("UPDATE sidestream_job SET state = 'done' WHERE id = ANY (%s)", [ids])
        assert self.broker.settle(deliveries) == []

    def close(self) -> None:
        for broker in self.brokers:
            broker.close()
        self.connection.close()


def started(binary: str | Path) -> Iterator[RedisServer]:
    """Yield a server of ``binary`` for a session."""
    with RedisServer(binary=binary) as server:
        yield server
