"""A group with one waiting job beside other groups has no sorted set of its own, and behaves as if it had."""

from __future__ import annotations

import pytest
import redis

from sidestream.broker.protocol import Place, Publication
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.connection import RedisConnection
from sidestream.broker.redis.inspect import RedisInspector
from sidestream.job.outcome import Release
from sidestream.job.reference import row_reference
from sidestream.job.rules import Limit, Pause, Rules, Scope
from tests.integration.redis.conftest import DB, Clock
from tests.integration.redis.test_functions import LANE, P, claimed
from tests.support.servers import RedisServer

SINGLETONS = f"{P}singletons:r1"


def job(number: int, group: str, due: int = 0, limit: str | None = None) -> Publication:
    return Publication(row_reference(DB, number, "act", None, group, limit).pack(), LANE, due)


A, B, B2, C = job(1, "a"), job(2, "b"), job(3, "b"), job(4, "c")


def flows(client: redis.Redis) -> int:
    return len(list(client.scan_iter(f"{P}flow:r1:*")))


def numbers(broker: RedisBroker, free: int = 10) -> list[bytes]:
    return [one.reference for one in claimed(broker, free)]


@pytest.fixture
def two(broker: RedisBroker, client: redis.Redis) -> RedisBroker:
    """A broker in which group a has a sorted set and b a single job."""
    broker.publish([A])
    assert (client.exists(SINGLETONS), flows(client)) == (0, 1), "the only flow has a sorted set"
    broker.publish([B])
    assert (client.hlen(SINGLETONS), flows(client)) == (1, 1)
    return broker


def test_each_group_is_served_and_nothing_is_left(two: RedisBroker, client: redis.Redis) -> None:
    two.publish([C])
    assert sorted(numbers(two)) == sorted(one.reference for one in (A, B, C))
    assert not client.exists(SINGLETONS, f"{P}schedule:r1")


def test_a_second_job_of_the_group_joins_the_first(two: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    clock.ms += 5
    two.publish([B2])
    assert (client.exists(SINGLETONS), flows(client)) == (0, 2)
    found = numbers(two)
    assert found.index(B.reference) < found.index(B2.reference)
    assert A.reference in found


def test_many_jobs_of_one_group_beside_a_single_one(two: RedisBroker, client: redis.Redis) -> None:
    two.publish([job(number, "b") for number in range(10, 13)])
    assert (client.exists(SINGLETONS), flows(client)) == (0, 2)
    assert len(numbers(two)) == 5


def test_it_can_be_found_reprioritized_and_discarded(two: RedisBroker, client: redis.Redis) -> None:
    assert two.locate([B]) == [Place.READY]
    assert two.explain(B).rank == 0
    assert two.reprioritize(B, 2)
    assert two.locate([B]) == [Place.READY]
    assert client.hkeys(SINGLETONS)[0][:1] == b"2"
    assert two.discard(B)
    assert not two.discard(B)
    assert two.locate([B]) == [Place.NOWHERE]
    assert not client.exists(SINGLETONS)
    assert numbers(two) == [A.reference]


def test_published_again_by_force_it_is_there_once(two: RedisBroker) -> None:
    two.publish([B], force=True)
    assert sorted(numbers(two)) == sorted([A.reference, B.reference])


def test_paused_it_keeps_its_place(two: RedisBroker, client: redis.Redis) -> None:
    two.configure(DB, Rules(1, pauses=frozenset({Pause(group="b")})))
    assert numbers(two) == [A.reference]
    assert (client.hlen(SINGLETONS), client.zcard(f"{P}schedule:r1")) == (1, 0)
    two.publish([B2])
    assert numbers(two) == []
    two.configure(DB, Rules(2))
    assert numbers(two, 0) == []
    assert sorted(numbers(two)) == sorted([B.reference, B2.reference])


def test_paused_and_resumed_alone(two: RedisBroker) -> None:
    two.configure(DB, Rules(1, pauses=frozenset({Pause(group="b")})))
    assert numbers(two) == [A.reference]
    two.configure(DB, Rules(2))
    assert numbers(two, 0) == []
    assert numbers(two) == [B.reference]


def test_released_it_is_there_once(two: RedisBroker) -> None:
    two.publish([C])
    for one in claimed(two):
        two.release(one, Release(delay_ms=0))
    assert len(numbers(two)) == 3


def test_jobs_that_become_due(broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    broker.publish([job(number, f"g{number}", clock.ms + 50) for number in range(1, 6)])
    clock.ms += 60
    assert numbers(broker, 0) == []
    assert (client.hlen(SINGLETONS), flows(client)) == (4, 1)
    assert len(numbers(broker)) == 5


def test_jobs_that_a_limit_parks(broker: RedisBroker, client: redis.Redis) -> None:
    broker.configure(DB, Rules(1, limits={(Scope.KEY, "courier"): Limit(1, None, 1)}))
    jobs = [job(number, f"g{number}", 0, "courier:7") for number in range(1, 5)]
    broker.publish(jobs)
    done: list[bytes] = []
    for left in (3, 2, 1, 0):
        (one,) = claimed(broker)
        single = sum(client.hlen(name) for name in client.scan_iter(f"{P}singletons:l*"))
        assert single + len(list(client.scan_iter(f"{P}flow:l*"))) == left
        done.append(one.reference)
        broker.settle([one])
    assert sorted(done) == sorted(one.reference for one in jobs)
    assert not list(client.scan_iter(f"{P}singletons:*"))


def test_the_depth_counts_it(two: RedisBroker, redis_server: RedisServer) -> None:
    two.publish([B2, C])
    connection = RedisConnection(redis_server.url)
    try:
        assert [one.ready for one in RedisInspector(connection).lanes()] == [4]
    finally:
        connection.close()


@pytest.mark.parametrize("foreign", [b"hello", b"no number here", b"12 short"])
def test_foreign_bytes_go_to_quarantine(two: RedisBroker, client: redis.Redis, foreign: bytes) -> None:
    (flow,) = client.hkeys(SINGLETONS)
    client.hset(SINGLETONS, flow, foreign)
    assert numbers(two) == [A.reference]
    assert client.llen(f"{P}quarantine") == 1
    assert not client.exists(SINGLETONS, f"{P}schedule:r1")


def test_a_second_job_beside_foreign_bytes(two: RedisBroker, client: redis.Redis) -> None:
    (flow,) = client.hkeys(SINGLETONS)
    client.hset(SINGLETONS, flow, b"hello")
    two.publish([B2])
    assert sorted(numbers(two)) == sorted([A.reference, B2.reference])
    assert client.llen(f"{P}quarantine") == 1


def test_a_flow_that_another_release_removed_comes_back(two: RedisBroker, client: redis.Redis) -> None:
    (flow,) = client.hkeys(SINGLETONS)
    client.zrem(f"{P}schedule:r1", flow)
    two.publish([B2])
    assert sorted(numbers(two)) == sorted([A.reference, B.reference, B2.reference])


def test_the_flow_of_a_paused_group_does_not_come_back_with_its_second_job(
    two: RedisBroker, client: redis.Redis
) -> None:
    """In the schedule it would take the turns of aged priorities, unlike in the memory broker."""
    two.configure(DB, Rules(1, pauses=frozenset({Pause(group="b")})))
    assert numbers(two) == [A.reference]
    assert not client.exists(f"{P}schedule:r1"), "it was met and is passed over"
    two.publish([C, B2])
    assert client.zrange(f"{P}schedule:r1", 0, -1) == [b"5" + C.reference[-16:-8]]
    two.configure(DB, Rules(2))
    assert sorted(numbers(two)) == sorted([B.reference, B2.reference, C.reference])
