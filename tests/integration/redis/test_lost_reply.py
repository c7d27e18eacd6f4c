"""A claim whose reply is lost: what it granted is offered again with the next claim, not a lease later."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from sidestream.broker.protocol import Delivery
from sidestream.broker.redis.broker import RedisBroker
from sidestream.errors import BrokerUnavailable
from sidestream.job.rules import Limit, Rules, Scope
from tests.integration.redis.test_functions import DB, LANE, direct
from tests.support.servers import RedisServer

NUMBERS = itertools.count(1)
WORKER = "host-1-worker"


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[RedisBroker]:
    broker = RedisBroker(redis_server.url, timeout=1.0)
    broker.begin_generation()
    broker.configure(DB, Rules(limits={(Scope.GLOBAL, ""): Limit(concurrency=4)}))
    broker.mark_synced(DB)
    yield broker
    broker.close()


def _publish(broker: RedisBroker, count: int) -> list[bytes]:
    jobs = [direct(next(NUMBERS)) for _ in range(count)]
    broker.publish(jobs)
    return sorted(job.reference for job in jobs)


def _references(found: list[Delivery]) -> list[bytes]:
    return sorted(delivery.reference for delivery in found)


def test_what_a_lost_reply_granted_comes_with_the_next_claim(broker: RedisBroker, redis_server: RedisServer) -> None:
    """A frozen server carries the claim out when it thaws; the limit has room for what comes again."""
    _publish(broker, 2)
    held = broker.claim(WORKER, [LANE], free=2)
    lost = _publish(broker, 2)
    redis_server.freeze()
    with pytest.raises(BrokerUnavailable):
        broker.claim(WORKER, [LANE], free=2)
    redis_server.thaw()
    found = broker.claim(WORKER, [LANE], free=4)
    assert _references(found) == lost
    assert broker.renew(WORKER, [one.lease for one in held + found]) == []
    assert broker.settle(held + found) == []


def test_a_reasserted_job_is_not_returned(broker: RedisBroker, redis_server: RedisServer) -> None:
    _publish(broker, 2)
    held = broker.claim(WORKER, [LANE], free=2)
    redis_server.flushall()
    broker.begin_generation()
    broker.configure(DB, Rules())
    held = broker.reassert(WORKER, held)
    redis_server.freeze()
    with pytest.raises(BrokerUnavailable):
        broker.claim(WORKER, [LANE], free=2)
    redis_server.thaw()
    assert broker.claim(WORKER, [LANE], free=2) == []
    assert broker.renew(WORKER, [one.lease for one in held]) == []
