"""The connection that callers publish over at once: bounded, never confused, reopened as often as needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from sidestream.broker.redis.broker import RedisBroker
from sidestream.errors import BrokerUnavailable
from tests.integration.redis.conftest import ready
from tests.integration.redis.test_functions import LANE, direct, row
from tests.support.servers import RedisServer


@pytest.fixture
def quick(redis_server: RedisServer) -> Iterator[RedisBroker]:
    made = RedisBroker(redis_server.url, timeout=10)
    ready(made)
    made.get_ready()
    yield made
    made.close()


def test_it_publishes(quick: RedisBroker) -> None:
    assert quick.publish_at_once([row(1), direct(2)], 5)
    assert len(quick.claim("w1", [LANE], free=5)) == 2


def test_what_is_not_open_is_not_used(redis_server: RedisServer) -> None:
    broker = RedisBroker(redis_server.url)
    ready(broker)
    assert not broker.publish_at_once([row(1)], 5)
    broker.close()


def test_a_silent_server_costs_the_seconds_and_is_not_asked_again(
    quick: RedisBroker, redis_server: RedisServer
) -> None:
    redis_server.freeze()
    with pytest.raises(BrokerUnavailable, match="did not answer in time"):
        quick.publish_at_once([row(1)], 0.05)
    assert not quick.publish_at_once([row(1)], 0.05), "its answer may still come: the connection is closed"
    redis_server.thaw()
    quick.get_ready()
    assert quick.publish_at_once([row(2)], 5)


def test_it_is_opened_again_as_often_as_the_server_closes_it(quick: RedisBroker, client: redis.Redis) -> None:
    for number in range(150):  # more than a pool has connections
        client.client_kill_filter(_type="normal", skipme=True)
        assert not quick.publish_at_once([row(number)], 5)
        quick.get_ready()
    assert quick.publish_at_once([row(500)], 5)


def test_an_empty_server_is_left_to_the_other_way(quick: RedisBroker, client: redis.Redis) -> None:
    client.flushall()
    assert not quick.publish_at_once([row(1)], 5)
    client.function_flush()
    assert not quick.publish_at_once([row(1)], 5)


def test_a_reply_that_came_too_late_is_not_the_next_one_s(quick: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = quick.connection._ready
    assert connection is not None
    with monkeypatch.context() as patch:
        # What redis-py calls between sending and reading: an exception of a signal may come there.
        patch.setattr(connection, "read_response", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quick.publish_at_once([direct(1)], 5)
    assert not quick.publish_at_once([direct(1)], 5)
    quick.get_ready()
    assert quick.connection.run_at_once("ECHO", "mine", seconds=5) == b"mine"
    assert {one.payload for one in quick.claim("w1", [LANE], free=5)} == {b"signed"}
