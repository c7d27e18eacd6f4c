"""What pages and commands read about a shard."""

from __future__ import annotations

import redis

from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.failed import FailedDirectJobs
from sidestream.broker.redis.inspect import AnnouncedWorker, LaneDepth, RedisInspector
from tests.integration.redis.conftest import START
from tests.integration.redis.test_functions import LANE, READY, P, claimed, direct, row


def test_an_empty_shard(broker: RedisBroker) -> None:
    inspector = RedisInspector(broker.connection)
    assert (inspector.lanes(), inspector.workers()) == ((), ())


def test_every_figure(broker: RedisBroker, client: redis.Redis) -> None:
    broker.announce("w1", [LANE], '{"host": "a"}', 5000)
    broker.publish([row(1), row(2), row(3, "k"), row(4, "k"), row(5, "k"), row(6, due=START + 9000), direct(7)])
    claimed(broker, 1)
    client.zadd(P + READY, {b"hello": 0})
    claimed(broker, 1)
    broker.claim("w2", [LANE], free=1)
    inspector = RedisInspector(broker.connection)
    assert inspector.lanes() == (LaneDepth(LANE, ready=1, leased=3),)
    assert inspector.workers() == (AnnouncedWorker("w1", (LANE,), {"host": "a"}, START + 5000),)
    assert client.lrange(f"{P}quarantine", 0, -1) == [b"hello"]


def test_a_handed_off_job_that_is_not_read_counts_as_leased(broker: RedisBroker) -> None:
    broker.announce("w1", [LANE], "{}", 5000)
    broker.claim("w1", [LANE], free=2, wait_ms=20)
    broker.publish([row(1)])
    assert RedisInspector(broker.connection).lanes()[0].leased == 1


def test_failed_direct_jobs_by_page(broker: RedisBroker) -> None:
    broker.publish([direct(number) for number in range(300)])
    for one in claimed(broker, 300):
        broker.fail(one, "it is \N{GREEK SMALL LETTER ALPHA} test")
    found = list(FailedDirectJobs(broker))
    assert {job.uuid.int for job in found} == set(range(300))
    assert {(job.error, job.queue, job.at_ms, job.job) for job in found} == {
        ("it is \N{GREEK SMALL LETTER ALPHA} test", "default", START, None)
    }, "b'signed' is no signed job: it is listed all the same"
