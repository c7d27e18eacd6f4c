"""A begun broker over an empty Valkey, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.reference import NO_TAG8
from sidestream.job.rules import Rules
from tests.support.servers import RedisServer

START = 1_800_000_000_000
DB = b"testbase"


class Clock:
    """Milliseconds that only the test moves."""

    def __init__(self) -> None:
        self.ms = START

    def __call__(self) -> int:
        return self.ms


def ready(broker: RedisBroker, rules: Rules | None = None) -> None:
    """Begin a generation, let rules govern the tests' database and state that its rows are published."""
    broker.begin_generation()
    for database in (DB, NO_TAG8):
        broker.configure(database, rules or Rules())
        broker.mark_synced(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(redis_server: RedisServer, clock: Clock) -> Iterator[RedisBroker]:
    made = RedisBroker(redis_server.url, timeout=10, clock_ms=clock)
    ready(made)
    yield made
    made.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as made:
        yield made
