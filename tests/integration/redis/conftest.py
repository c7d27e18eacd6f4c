"""A begun broker over an empty Valkey, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sidestream.broker.redis.broker import RedisBroker
from sidestream.testing.servers import RedisServer

START = 1_800_000_000_000


class Clock:
    """Milliseconds that only the test moves."""

    def __init__(self) -> None:
        self.ms = START

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(redis_server: RedisServer, clock: Clock) -> Iterator[RedisBroker]:
    made = RedisBroker(redis_server.url, timeout=10, clock_ms=clock)
    made.begin_generation()
    yield made
    made.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as made:
        yield made
