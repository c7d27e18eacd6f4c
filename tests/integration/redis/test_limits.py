"""What limits, pauses and unknown actions leave in Redis, and what a limit does when something is lost."""

from __future__ import annotations

from random import Random

import pytest
import redis

from sidestream.broker.protocol import Delivery, Place, Publication
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.names import tag
from sidestream.job.outcome import Release
from sidestream.job.reference import limit_tag, row_reference
from sidestream.job.rules import Limit, Pause, Rules, Scope
from tests.integration.redis.conftest import DB, Clock, ready
from tests.integration.redis.test_functions import LANE, P, claimed
from tests.support.servers import RedisServer

LEASE_MS, RENEW_MS = 15_000, 3_000
SLOTS = f"{P}slots:{DB.hex()}:k{limit_tag('courier:7').hex()}"
POOL = f"l{DB.hex()}:k{limit_tag('courier:7').hex()}"


def courier(number: int, value: int = 7, key: str | None = None, action: str = "act") -> Publication:
    return Publication(row_reference(DB, number, action, key, None, f"courier:{value}").pack(), LANE)


def limited(concurrency: int | None, version: int = 1, rate: float | None = None, burst: int = 1) -> Rules:
    return Rules(version, limits={(Scope.KEY, "courier"): Limit(concurrency, rate, burst)})


def parked(client: redis.Redis) -> int:
    """Return how many jobs wait in the courier's pool."""
    return sum(client.zcard(name) for name in client.scan_iter(f"{P}flow:{POOL}:*"))


def late(broker: RedisBroker, clock: Clock) -> list[Delivery]:
    """Let every lease run out, the others calling all the while, and take over what is left behind."""
    for _ in range(4):
        clock.ms += 5000
        broker.claim("looks on", ["none"], free=1)
    return [one for one, _ in broker.reclaim("w2", [LANE], lease_ms=LEASE_MS, grace_ms=RENEW_MS).deliveries]


def test_nothing_is_left_behind(broker: RedisBroker, client: redis.Redis) -> None:
    broker.configure(DB, limited(1))
    jobs = [courier(number) for number in range(1, 5)]
    broker.publish(jobs)
    (one,) = claimed(broker)
    assert (client.smembers(SLOTS), parked(client)) == ({one.reference}, 3)
    assert client.smembers(f"{P}parked") == {POOL.encode()}
    assert all(broker.discard(job) for job in jobs[1:])
    assert not client.exists(f"{P}parked", f"{P}timers", f"{P}schedule:{POOL}"), "its last waiter was cancelled"
    broker.settle([one])
    assert not client.exists(SLOTS)


def test_a_freed_slot_unparks_one_job(broker: RedisBroker, client: redis.Redis) -> None:
    broker.configure(DB, limited(20))
    broker.publish([courier(number) for number in range(1, 101)])
    held = claimed(broker, 50)
    assert (len(held), parked(client)) == (20, 80)
    broker.settle(held)
    assert parked(client) == 60, "as many as were freed, not as many as fit for each of them"
    assert len(claimed(broker, 50)) == 20


def test_a_holder_whose_reference_was_lost(broker: RedisBroker, client: redis.Redis) -> None:
    broker.configure(DB, limited(1))
    broker.publish([courier(1), courier(2)])
    (one,) = claimed(broker)
    client.hdel(f"{P}leases", one.reference)
    client.zrem(f"{P}leased:{LANE}", one.reference)
    assert claimed(broker) == []
    broker.reclaim("w2", [LANE], lease_ms=LEASE_MS, grace_ms=RENEW_MS)
    assert [one.reference for one in claimed(broker)] == [courier(2).reference]


@pytest.mark.parametrize("scope", [Scope.GLOBAL, Scope.QUEUE])
def test_a_lost_holder_of_everything_or_of_the_queue(broker: RedisBroker, client: redis.Redis, scope: Scope) -> None:
    broker.configure(DB, Rules(1, limits={(scope, "" if scope is Scope.GLOBAL else "default"): Limit(1)}))
    broker.publish([courier(1), courier(2)])
    (one,) = claimed(broker)
    client.hdel(f"{P}leases", one.reference)
    assert claimed(broker) == []
    broker.reclaim("w2", [LANE], lease_ms=LEASE_MS, grace_ms=RENEW_MS)
    assert len(claimed(broker)) == 1


def test_a_reply_that_never_came(broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    broker.configure(DB, limited(1))
    broker.publish([courier(1), courier(2)])
    claimed(broker)  # the worker never read it
    assert claimed(broker) == [], "its slot is held"
    (again,) = late(broker, clock)
    assert client.smembers(SLOTS) == {again.reference}, "a take-over keeps it"
    assert claimed(broker) == []
    broker.release(again, Release())
    assert [one.reference for one in claimed(broker)] == [courier(1).reference]


def test_an_unread_hand_off_gives_its_slot_back(broker: RedisBroker, client: redis.Redis) -> None:
    broker.configure(DB, limited(1))
    broker.announce("w1", [LANE], "{}", 5000)
    broker.claim("w1", [LANE], free=2, wait_ms=20)
    broker.publish([courier(1), courier(2)])
    assert client.scard(SLOTS) == client.llen(f"{P}handoff:w1") == 1
    broker.withdraw("w1")
    assert not client.exists(SLOTS)
    assert len(broker.claim("w2", [LANE], free=5)) == 1


def test_rules_from_before_redis_was_emptied_do_not_come_back(broker: RedisBroker, redis_server: RedisServer) -> None:
    broker.configure(DB, limited(0))
    broker.publish([courier(1)])
    assert claimed(broker) == []
    redis_server.flushall()
    ready(broker, limited(1))  # the same version number, other rules: what the server parsed is not taken for them
    broker.publish([courier(1)])
    assert len(claimed(broker)) == 1


def test_rules_are_taken_although_the_memory_is_full(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([courier(1)])
    client.config_set("maxmemory", 1)
    try:
        assert broker.configure(DB, Rules(1, pauses=frozenset({Pause(queue="default")})))
        assert claimed(broker) == []
    finally:
        client.config_set("maxmemory", 0)


def test_a_worker_that_knows_an_action_gets_its_jobs_at_once(broker: RedisBroker, client: redis.Redis) -> None:
    broker.announce("expert", [LANE], "{}", 5000, frozenset({tag("new", 4)}))
    broker.announce("old", [LANE], "{}", 5000, frozenset({tag("act", 4)}))
    broker.claim("expert", [LANE], free=1, wait_ms=20)
    broker.claim("old", [LANE], free=1, wait_ms=20)
    broker.publish([courier(1, action="new")])
    assert (client.llen(f"{P}handoff:expert"), client.llen(f"{P}handoff:old")) == (1, 0)
    broker.publish([courier(2, action="new")])
    assert broker.locate([courier(2, action="new")]) == [Place.UNROUTED]
    assert not broker.claim("old", [LANE], free=1)
    assert len(broker.claim("expert", [LANE], free=2)) == 2


def test_very_many_paused_groups_leave_in_bounded_batches(broker: RedisBroker, client: redis.Redis) -> None:
    groups = [f"g{number}" for number in range(2500)]
    broker.publish(
        [
            Publication(row_reference(DB, number, "act", None, group).pack(), LANE)
            for number, group in enumerate(groups, 1)
        ]
    )
    broker.publish([Publication(row_reference(DB, 9999, "act", None, "idle").pack(), LANE, priority=9)])
    broker.configure(DB, Rules(1, pauses=frozenset(Pause(group=group) for group in groups)))
    assert [len(claimed(broker)) for _ in range(4)] == [0, 0, 1, 0]
    assert client.zcard(f"{P}schedule:r1") == 0
    broker.configure(DB, Rules(2))
    for _ in range(200):
        claimed(broker, 0)
    assert len(claimed(broker, 2500)) == 2500


class Shift:
    """Workers that claim, end, die and lose answers under one limit, and a server that is emptied meanwhile."""

    def __init__(self, broker: RedisBroker, server: RedisServer, clock: Clock, random: Random) -> None:
        self.broker, self.server, self.clock, self.random = broker, server, clock, random
        self.most, self.version, self.admitted = 3, 1, 0
        self.jobs = {courier(number).reference: courier(number) for number in range(1, 400)}
        #: In children that live, and leased to workers that died: both count.
        self.running: dict[bytes, Delivery] = {}
        self.left: set[bytes] = set()
        broker.configure(DB, limited(self.most))
        broker.publish(list(self.jobs.values()))

    def claim(self, *, answered: bool = True) -> None:
        before = len(self.running) + len(self.left)
        found = claimed(self.broker, self.random.choice((1, 2, 8)))
        assert not found or before + len(found) <= self.most, f"{before} ran, {len(found)} came, {self.most} may"
        self.admitted += len(found)
        if answered:
            self.running.update((one.reference, one) for one in found)
        else:
            self.left |= {one.reference for one in found}

    def lose_an_answer(self) -> None:
        self.claim(answered=False)

    def end(self) -> None:
        if not self.running:
            return
        one = self.running.pop(self.random.choice(list(self.running)))
        if self.random.random() < 0.5:
            assert self.broker.settle([one]) == []
            del self.jobs[one.reference]
        else:
            assert self.broker.release(one, Release(delay_ms=self.random.choice((0, 50)))) >= 0

    def kill(self) -> None:
        if self.running:
            self.left.add(self.running.popitem()[0])

    def change_rules(self) -> None:
        self.most, self.version = self.random.randrange(6), self.version + 1
        self.broker.configure(DB, limited(self.most, self.version))

    def _of(self, worker: str) -> list[Delivery]:
        return [one for one in self.running.values() if one.lease.worker == worker]

    def reclaim(self) -> None:
        for _ in range(4):
            self.clock.ms += 5000
            self.broker.claim("looks on", ["none"], free=1)
            for worker in ("w1", "w2"):
                assert self.broker.renew(worker, [one.lease for one in self._of(worker)]) == []
        taken = self.broker.reclaim("w2", [LANE], lease_ms=LEASE_MS, grace_ms=RENEW_MS).deliveries
        assert {one.reference for one, _ in taken} == self.left
        self.left.clear()
        for one, _ in taken:
            self.broker.release(one, Release())

    def empty(self) -> None:
        self.server.flushall()
        self.broker.begin_generation()
        self.broker.configure(DB, limited(self.most, self.version))
        self.broker.publish(list(self.jobs.values()))
        assert claimed(self.broker) == [], "nothing before everybody stated what he holds"
        for worker in ("w1", "w2"):
            again = self.broker.reassert(worker, self._of(worker))
            self.running.update((one.reference, one) for one in again)
        self.broker.mark_synced(DB)
        self.left.clear()  # they died, and their leases with the server's contents: nobody runs them


@pytest.mark.parametrize("seed", range(4))
def test_never_more_than_allowed_whatever_is_killed(
    broker: RedisBroker, redis_server: RedisServer, clock: Clock, seed: int
) -> None:
    random = Random(seed)
    shift = Shift(broker, redis_server, clock, random)
    steps = [shift.claim, shift.end, shift.kill, shift.lose_an_answer, shift.change_rules, shift.reclaim, shift.empty]
    for step in random.choices(steps, [40, 30, 8, 4, 6, 8, 1], k=600):
        step()
        clock.ms += random.choice((1, 60, 1100))
    assert shift.admitted > 100, "it is a limit, not a stop"
