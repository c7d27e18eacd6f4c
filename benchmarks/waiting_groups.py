"""Continue `waiting.py`: 10,000 groups, most of them paused; a million jobs due at once; the cost of each limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from harness import Bar, Row, figure, in_turn, note, percentile, say
from world import World, server_versions

from sidestream.broker.protocol import Broker, Publication, lane
from sidestream.job.reference import row_reference
from sidestream.job.rules import Limit, Pause, Rules, Scope
from sidestream.wiring.client import build_broker
from tests.support.server_process import ServerFailed

CHUNK = 500
DATABASE = bytes.fromhex("0011223344556677")
LANES = (lane(DATABASE, "default"),)
CONSUMER = "bench"
GROUPS = 10_000
FEW = 1_000
BATCH, BATCHES, SINGLES = 64, 60, 300
FREE = Limit(concurrency=10**6)
KINDS: Mapping[str, Rules] = {
    "none": Rules(1),
    "concurrency of everything": Rules(1, limits={(Scope.GLOBAL, ""): FREE}),
    "concurrency of the queue": Rules(1, limits={(Scope.QUEUE, "default"): FREE}),
    "concurrency of the action": Rules(1, limits={(Scope.ACTION, "bench.noop"): FREE}),
    "concurrency of a key": Rules(1, limits={(Scope.KEY, "courier"): FREE}),
    "rate of a key": Rules(1, limits={(Scope.KEY, "courier"): Limit(rate=1e6, burst=10**6)}),
    "all four": Rules(
        1,
        limits={
            (Scope.GLOBAL, ""): FREE,
            (Scope.QUEUE, "default"): FREE,
            (Scope.ACTION, "bench.noop"): FREE,
            (Scope.KEY, "courier"): FREE,
        },
    ),
}


def begin(broker: Broker, rules: Rules | None = None) -> None:
    """Begin a generation whose rows are all published, under ``rules``."""
    broker.begin_generation()
    broker.configure(DATABASE, rules or Rules())
    broker.mark_synced(DATABASE)


def groups_and_limits(depth: int, rounds: int) -> list[Row]:
    """Measure on Valkey, and the memory on Redis 7.0 too if it is there."""
    with World() as world:
        rows = [_memory_of_groups(world)]
    try:
        with World(binary="redis7") as world:
            rows.append(_memory_of_groups(world))
    except ServerFailed as error:
        note(f"Redis 7.0 is left out: {error}")
    return [*rows, *_paused_groups(rounds), *_promotion(depth), *_limits(rounds)]


def _job(number: int, *, group: str | None = None, limit: str | None = None, due: int = 0) -> Publication:
    return Publication(row_reference(DATABASE, number, "bench.noop", None, group, limit).pack(), LANES[0], due)


def _publish(broker: Broker, count: int, make: Callable[[int], Publication], first: int = 1) -> None:
    for start in range(first, first + count, CHUNK):
        broker.publish([make(number) for number in range(start, min(start + CHUNK, first + count))])


def _memory_of_groups(world: World) -> Row:
    broker = build_broker(world.settings())
    begin(broker)
    broker.publish([_job(1)])  # what the first job brings along
    before = int(world.client.info("memory")["used_memory"])
    _publish(broker, GROUPS, lambda number: _job(number, group=f"group {number}"), 2)
    bytes_a_job = (int(world.client.info("memory")["used_memory"]) - before) / GROUPS
    broker.close()
    name = server_versions(world)["redis server"].partition(",")[0]
    what = f"Redis memory a waiting job, {GROUPS:,} groups with one each; {name}"
    return Row(what, figure(bytes_a_job), "bytes", "", None, Bar("value", "<", 250))


class _Busy:
    """A lane that is claimed from, settled and filled again with as many jobs of one group."""

    def __init__(self, world: World, rules: Rules, group: str | None, limit: str | None = None) -> None:
        self.broker, self._group, self._limit = build_broker(world.settings()), group, limit
        begin(self.broker, rules)
        self._next = 10**6
        self.fill(FEW)

    def fill(self, count: int) -> None:
        first, self._next = self._next, self._next + count
        _publish(self.broker, count, lambda number: _job(number, group=self._group, limit=self._limit), first)

    def cost(self, count: int) -> float:
        started = time.perf_counter()
        found = self.broker.claim(CONSUMER, LANES, free=count)
        lost = self.broker.settle(found)
        took = time.perf_counter() - started
        if len(found) != count or lost:
            raise AssertionError(f"Asked for {count} jobs: {len(found)} came, {len(lost)} leases were lost.")
        self.fill(count)
        return took * 1e6


def _paused_groups(rounds: int) -> list[Row]:
    paused = [f"group {number}" for number in range(1, GROUPS)]
    with World() as one, World() as other:
        few = _Busy(one, Rules(1), "free")
        many = _Busy(other, Rules(1, pauses=frozenset(Pause(group=name) for name in paused)), "free")
        _publish(many.broker, len(paused), lambda number: _job(number, group=paused[number - 1]))
        for _ in range(GROUPS // 100):  # the paused ones leave in bounded batches
            met = many.broker.claim(CONSUMER, LANES, free=1)
            many.broker.settle(met)
            many.fill(len(met))
        rows = []
        for count, times in ((1, SINGLES), (BATCH, BATCHES)):
            took: dict[str, list[float]] = {"few": [], "many": []}
            for _ in range(rounds):
                each: dict[str, list[float]] = {"few": [], "many": []}
                for _ in range(times):
                    each["few"].append(few.cost(count))
                    each["many"].append(many.cost(count))
                for name, values in each.items():
                    took[name].append(percentile(values, 0.5))
            what = f"claim + settle of {count}, p50, {GROUPS:,} groups of which {GROUPS - 1:,} are paused"
            against = f"{FEW:,} waiting in 1 group"
            rows.append(Row(what, figure(took["many"]), "us", against, figure(took["few"]), Bar("ratio", "<=", 1.2)))
        few.broker.close()
        many.broker.close()
    return rows


def _promotion(depth: int) -> list[Row]:
    with World() as world:
        broker = build_broker(world.settings())
        begin(broker)
        due = int(time.time() * 1000) + 3_600_000
        say(f"publishing {depth:,} delayed jobs ...")
        _publish(broker, depth, lambda number: _job(number, due=due))
        delayed = next(iter(world.client.scan_iter("*delayed:*", count=1000)))
        members = world.client.zrange(delayed, 0, -1)
        for start in range(0, len(members), 10_000):  # an hour later: all are due at once
            world.client.zadd(delayed, dict.fromkeys(members[start : start + 10_000], 1))
        took = []
        for _ in range(min(200, depth // 100)):
            before = world.client.zcard(delayed)
            started = time.perf_counter()
            broker.claim(CONSUMER, LANES, free=0)
            took.append((time.perf_counter() - started) * 1e6)
            promoted = before - world.client.zcard(delayed)
            if not 0 < promoted <= 100:
                raise AssertionError(f"A call promoted {promoted} jobs: expected 1 to 100.")
        broker.close()
    what = f"a call that promotes 100 of {depth:,} jobs that are due at once"
    return [Row(f"{what}, {name}", figure(percentile(took, share)), "us") for name, share in (("p50", 0.5), ("max", 1))]


def _limits(rounds: int) -> list[Row]:
    found: dict[str, list[float]] = {}
    with World() as world:

        def side(rules: Rules) -> Callable[[], float]:
            def run() -> float:
                world.client.flushall()
                busy = _Busy(world, rules, None, "courier:7")
                took = percentile([busy.cost(BATCH) for _ in range(BATCHES)], 0.5)
                busy.broker.close()
                return took

            return run

        found = in_turn(rounds, {name: side(rules) for name, rules in KINDS.items()})
    return [
        Row(f"claim + settle of {BATCH}, p50; limit: {name}", figure(values), "us", "none", figure(found["none"]))
        for name, values in found.items()
    ]
