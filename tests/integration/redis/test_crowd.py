"""Beside hundreds of workers and databases every call costs what it costs beside one; maintenance is done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
import redis

from sidestream.broker.protocol import Place, Publication, Reclaimed, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.functions import Functions
from sidestream.job.names import tag
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference, direct_reference, row_reference
from sidestream.job.rules import Limit, Pause, Rules, Scope
from tests.integration.redis.conftest import DB, Clock

P = "sidestream:{s0}:"
LANE, OTHER = lane(DB, "default"), lane(DB, "other")
MINE = "a worker"
ACTS = frozenset({tag("act", 4)})
CROWD = 200
HOUR = 3_600_000


def job(number: int, in_lane: str = LANE, key: str | None = None, *, action: str = "act", due: int = 0) -> Publication:
    return Publication(row_reference(DB, number, action, key).pack(), in_lane, due)


class Crowd:
    """Workers that wait for jobs, as a claim does but for the blocked read itself."""

    def __init__(self, broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
        self.broker, self.client, self.clock = broker, client, clock
        self.functions = Functions(broker.connection, P, clock)
        self.functions.generation = str(broker.generation().number)
        self.lanes: dict[str, tuple[str, ...]] = {}
        self.next = 0

    def wait(self, name: str, *lanes: str, children: int = 1, actions: frozenset[bytes] | None = ACTS) -> None:
        self.lanes[name] = lanes
        self.broker.announce(name, lanes, "{}", 100 * HOUR, actions)
        self.again(name, children)

    def again(self, name: str, children: int = 1) -> None:
        assert self.functions.call("claim", 7500, name, children, 0, 1000, b"", 0, *self.lanes[name]) == [1000, []]

    def handed(self, name: str) -> list[int]:
        """Return the ids of the jobs that were handed to a worker, and let it end them."""
        found = self.broker.claim(name, self.lanes[name], free=9)
        self.broker.settle(found)
        return [Reference.unpack(one.reference).id for one in found]

    def commands(self, call: Callable[[], object]) -> int:
        """Return how many commands a call takes the server, those of its function included."""

        def count() -> int:
            stats: dict[str, Any] = self.client.info("commandstats")
            return sum(one["calls"] for one in stats.values())

        before = count()
        call()
        return count() - before

    def publish(self, key: str | None) -> int:
        self.next += 1
        published = job(self.next, key=key)
        took = self.commands(lambda: self.broker.publish([published]))
        name = self.broker.explain(published).worker
        assert self.handed(name) == [self.next]
        self.again(name)
        return took

    def claim(self) -> int:
        self.next += 1
        self.broker.publish([job(self.next, due=self.clock.ms + 1)])
        self.clock.ms += 1
        took = self.commands(lambda: self.broker.claim(MINE, [LANE], free=1))
        self.again(MINE)
        return took

    def costs(self) -> dict[str, int]:
        """Return what each call costs at this moment."""
        return {
            "publish": self.publish(None),
            "keyed publish": self.publish("k"),
            "claim": self.claim(),
            "claim of nothing": self.commands(lambda: self.again(MINE)),
            "reclaim": self.commands(lambda: reclaim(self.broker)),
            "generation": self.commands(lambda: self.broker.generation([DB])),
        }


@pytest.fixture
def crowd(broker: RedisBroker, client: redis.Redis, clock: Clock) -> Crowd:
    return Crowd(broker, client, clock)


def reclaim(broker: RedisBroker, lanes: Sequence[str] = (LANE,)) -> Reclaimed:
    return broker.reclaim(MINE, lanes, lease_ms=15_000, grace_ms=7000)


@pytest.mark.parametrize("databases", [1, CROWD])
def test_no_call_takes_more_beside_many_workers_and_databases(crowd: Crowd, databases: int) -> None:
    crowd.wait(MINE, LANE)
    crowd.costs()
    alone = crowd.costs()
    for number in range(CROWD):
        database = DB if databases == 1 else number.to_bytes(8, "big")
        crowd.broker.configure(database, Rules())
        crowd.broker.mark_synced(database)
        crowd.wait(f"w{number}", lane(database, "default"))
    crowd.again(MINE)
    beside = crowd.costs()
    assert {name: took for name, took in beside.items() if took > 1.1 * alone[name] + 1} == {}, (alone, beside)


def test_the_generation_names_no_other_databases(crowd: Crowd) -> None:
    for number in range(CROWD):
        crowd.broker.mark_synced(number.to_bytes(8, "big"))
    assert crowd.broker.generation([DB]).synced == {DB.hex()}


def test_a_job_skips_workers_that_do_not_know_its_action(crowd: Crowd) -> None:
    for number in range(5):
        crowd.wait(f"old {number}", LANE, actions=frozenset({tag("older", 4)}))
    crowd.wait("new", LANE)
    crowd.broker.publish([job(1, key="k")])
    assert crowd.handed("new") == [1]


def test_jobs_of_several_actions_go_to_workers_that_know_them(crowd: Crowd) -> None:
    crowd.wait("a", LANE, children=3, actions=frozenset({tag("a", 4)}))
    crowd.wait("b", LANE, children=3, actions=frozenset({tag("b", 4)}))
    crowd.broker.publish([job(number, action="ab"[number % 2]) for number in range(1, 6)])
    assert (crowd.handed("a"), crowd.handed("b")) == ([2, 4], [1, 3, 5])


def test_few_of_many_idle_workers_wake_for_a_delayed_job(crowd: Crowd, clock: Clock) -> None:
    """All others would claim in the same millisecond, and find nothing."""
    crowd.broker.publish([job(1, due=clock.ms + 300)])

    def claim(name: str) -> tuple[int, int]:
        block, granted = crowd.functions.call("claim", 7500, name, 1, 0, 1000, b"", 0, LANE)
        return block, len(granted)

    names = [f"w{number}" for number in range(CROWD)]
    awake = [name for name in names if claim(name) == (300, 0)]
    assert awake == names[:4]
    crowd.broker.publish([job(2)])
    crowd.lanes["w0"] = (LANE,)
    assert crowd.handed("w0") == [2]
    assert claim("w0") == (300, 0), "it was busy and takes its place again"
    clock.ms += 300
    took = crowd.commands(lambda: [claim(name) for name in awake])
    assert crowd.broker.locate([job(1)]) == [Place.LEASED]
    assert took < CROWD, "fewer commands than there are idle workers"


def test_a_slot_of_a_global_limit_goes_to_an_idle_worker_of_another_queue(crowd: Crowd) -> None:
    crowd.broker.configure(DB, Rules(1, limits={(Scope.GLOBAL, ""): Limit(concurrency=1)}))
    crowd.broker.publish([job(1)])
    (running,) = crowd.broker.claim(MINE, [LANE], free=1)
    crowd.wait("w", OTHER)
    crowd.broker.publish([job(2, OTHER)])
    crowd.broker.settle([running])
    assert crowd.handed("w") == [2]


def test_a_resumed_queue_hands_its_jobs_to_idle_workers(crowd: Crowd) -> None:
    crowd.broker.configure(DB, Rules(1, pauses=frozenset({Pause("other", None, None)})))
    crowd.wait("w", LANE, OTHER)
    crowd.broker.publish([job(1, OTHER)])
    crowd.broker.configure(DB, Rules(2))
    assert crowd.handed("w") == [1]


def test_a_worker_that_withdraws_is_handed_nothing(crowd: Crowd) -> None:
    crowd.wait("w", LANE)
    crowd.broker.withdraw("w")
    crowd.broker.publish([job(1)])
    assert crowd.broker.locate([job(1)]) == [Place.READY]
    assert not list(crowd.client.scan_iter(f"{P}idle:*"))


def test_leases_expire_although_the_clock_was_set_back(crowd: Crowd, clock: Clock) -> None:
    crowd.broker.publish([job(1)])
    crowd.broker.claim("failed", [LANE], free=1)
    clock.ms += 8000
    reclaim(crowd.broker)  # after a silence: its end is noted
    clock.ms -= HOUR
    reclaim(crowd.broker)
    found: list[str] = []
    for _ in range(16):
        clock.ms += 1000
        found += (loser for _, loser in reclaim(crowd.broker).deliveries)
    assert found == ["failed"]


def test_a_live_worker_keeps_its_leases_although_the_clock_was_set_back(crowd: Crowd, clock: Clock) -> None:
    crowd.broker.publish([job(1)])
    (held,) = crowd.broker.claim("living", [LANE], free=1)
    clock.ms -= HOUR
    for _ in range(10):
        clock.ms += 3000
        assert crowd.broker.renew("living", [held.lease]) == []
        assert not reclaim(crowd.broker).deliveries


def test_announcements_expire_although_the_clock_was_set_back(crowd: Crowd, clock: Clock) -> None:
    crowd.broker.announce("failed", [LANE], "{}", 15_000)
    reclaim(crowd.broker)
    clock.ms -= HOUR
    reclaim(crowd.broker)
    assert crowd.broker.is_alive("failed")
    clock.ms += 15_001
    assert not crowd.broker.is_alive("failed")


def test_a_released_direct_job_keeps_its_delay_although_the_clock_was_set_back(crowd: Crowd, clock: Clock) -> None:
    """A moment that its caller named stays what it is: the new time is the right one."""
    retried, scheduled = (
        Publication(direct_reference(UUID(int=n), "act", None, DB).pack(), LANE, due, b"signed")
        for n, due in ((1, 0), (2, clock.ms + 5000))
    )
    crowd.broker.publish([retried, scheduled])
    (held,) = crowd.broker.claim(MINE, [LANE], free=1)
    crowd.broker.release(held, Release(delay_ms=2000, count=False, charge_attempt=True))
    clock.ms -= HOUR
    assert crowd.broker.claim(MINE, [LANE], free=1) == []
    clock.ms += 2000
    assert [one.reference for one in crowd.broker.claim(MINE, [LANE], free=2)] == [retried.reference]
    found = crowd.broker.explain(scheduled)
    assert (found.place, found.until_ms) == (Place.DELAYED, scheduled.due_ms)


def test_a_rate_goes_on_although_the_clock_was_set_back(crowd: Crowd, clock: Clock) -> None:
    crowd.broker.configure(DB, Rules(1, limits={(Scope.ACTION, "act"): Limit(rate=1, burst=1)}))
    crowd.broker.publish([job(1), job(2)])
    assert len(crowd.broker.claim(MINE, [LANE], free=2)) == 1
    clock.ms -= HOUR
    crowd.broker.claim(MINE, [LANE], free=2)
    clock.ms += 1001
    assert len(crowd.broker.claim(MINE, [LANE], free=2)) == 1


def test_a_worker_that_was_idle_before_the_clock_was_set_back_is_handed_nothing(crowd: Crowd, clock: Clock) -> None:
    crowd.wait("failed", LANE)
    clock.ms -= HOUR
    crowd.broker.publish([job(1)])
    assert crowd.broker.locate([job(1)]) == [Place.READY]


def test_a_task_stays_with_its_worker_until_it_falls_silent(crowd: Crowd, clock: Clock) -> None:
    take = crowd.broker.take_turn
    assert take("tidy", "a", 3)
    assert not take("tidy", "b", 3)
    assert take("sweep", "b", 3), "another task"
    clock.ms += 2999
    assert take("tidy", "a", 3)
    clock.ms += 2999
    assert not take("tidy", "b", 3)
    clock.ms += 1
    assert take("tidy", "b", 3)
    assert not take("tidy", "a", 3)


def test_a_task_that_is_given_back_is_free(crowd: Crowd) -> None:
    assert crowd.broker.take_turn("tidy", "a", 3)
    crowd.broker.give_turn_back("tidy", "b")
    assert not crowd.broker.take_turn("tidy", "b", 3), "it was not theirs"
    crowd.broker.give_turn_back("tidy", "a")
    assert crowd.broker.take_turn("tidy", "b", 3)


def test_a_task_is_taken_over_although_the_clock_was_set_back(crowd: Crowd, clock: Clock) -> None:
    assert crowd.broker.take_turn("tidy", "a", 3)
    clock.ms -= HOUR
    assert crowd.broker.take_turn("tidy", "b", 3)
