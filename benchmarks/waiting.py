"""Measure what a waiting job costs Redis, and whether claiming stays cheap while a million jobs wait.

Two servers, one with 1,000 waiting jobs and one with 1,000,000, are measured call by call in turn. After each claim
and settle as many new ones are published, untimed, so that the depth stays. Beside it, in the same turns, the same
changes as bare commands on a sorted set of the same depth in the same server: what the server itself pays for the
depth is the limit. Then groups, pauses, promotion and limits (`waiting_groups.py`).
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from harness import Bar, Figure, Row, figure, finish, head, note, options, percentile, say
from waiting_groups import CHUNK, CONSUMER, DATABASE, LANES, begin, groups_and_limits
from world import World, server_versions

from sidestream.broker.protocol import Broker, Publication
from sidestream.job.reference import row_reference
from sidestream.wiring.client import build_broker
from tests.support.server_process import ServerFailed

FEW = 1_000
BARE, BARE_LEASES, BARE_HELD = "bare:ready", "bare:leases", "bare:held"
BUSY = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "aof_pending_bio_fsync")
REFERENCE = len(row_reference(DATABASE, 1, "bench.noop", None).pack())
SINGLES, BATCHES, BATCH = 500, 100, 64


class Cost(NamedTuple):
    """Microseconds of claim + settle in one round."""

    single_p50: float
    single_p95: float
    batch_p50: float
    batch_p95: float
    bare_single_p50: float
    bare_batch_p50: float


class Both(NamedTuple):
    """One round."""

    few: Cost
    many: Cost


class Scenario(NamedTuple):
    """One pair of servers in one state."""

    name: str
    few_bytes: float
    many_bytes: float
    rounds: list[Both]


class Lane:
    """A server with so many waiting jobs."""

    def __init__(self, world: World, depth: int) -> None:
        self.world = world
        self.broker: Broker = build_broker(world.settings())
        begin(self.broker)
        self.broker.announce(CONSUMER, LANES, "{}", 3_600_000)
        self._next = 1
        before = self._memory()
        for _ in range(depth // CHUNK):
            self.publish(CHUNK)
        self.bytes_a_job = (self._memory() - before) / depth
        for _ in range(depth // CHUNK):
            self._publish_bare(CHUNK)

    def publish(self, count: int) -> None:
        """Add ``count`` jobs."""
        numbers = range(self._next, self._next + count)
        self._next += count
        self.broker.publish(
            [Publication(row_reference(DATABASE, n, "bench.noop", None).pack(), LANES[0]) for n in numbers]
        )

    def rest(self) -> None:
        """Let the server write down what was published, so that the claims are measured and not the disk."""
        self.world.client.bgrewriteaof()
        while any(self.world.client.info("persistence")[one] for one in BUSY):
            time.sleep(0.05)

    def restart(self) -> None:
        """Stop the server and start it on what it wrote down."""
        self.world.redis.restart()
        self.broker.generation()

    def claim_and_settle(self, count: int) -> float:
        """Return the microseconds that claiming and settling ``count`` jobs took; then publish as many."""
        started = time.perf_counter()
        found = self.broker.claim(CONSUMER, LANES, free=count)
        lost = self.broker.settle(found)
        took = time.perf_counter() - started
        if len(found) != count or lost:
            raise AssertionError(f"Asked for {count} jobs: {len(found)} came, {len(lost)} leases were lost.")
        self.publish(count)
        return took * 1e6

    def bare(self, count: int) -> float:
        """Return the microseconds that the same changes took as bare commands; then fill up again."""
        client: Any = self.world.client  # redis-py's types leave bytes or text open
        started = time.perf_counter()
        members = [member for member, _ in client.zpopmin(BARE, count)]
        now = int(time.time() * 1000)
        with client.pipeline(transaction=False) as pipe:
            pipe.hset(BARE_LEASES, mapping=dict.fromkeys(members, f"0001795000000000 1 {now} 5 lane bench"))
            pipe.zadd(BARE_HELD, dict.fromkeys(members, now))
            pipe.hdel(BARE_LEASES, *members)
            pipe.zrem(BARE_HELD, *members)
            pipe.execute()
        took = time.perf_counter() - started
        self._publish_bare(count)
        return took * 1e6

    def _publish_bare(self, count: int) -> None:
        now = int(time.time() * 1000)
        self.world.client.zadd(BARE, {os.urandom(REFERENCE): now for _ in range(count)})

    def _memory(self) -> int:
        return int(self.world.client.info("memory")["used_memory"])


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=1_000_000, quick_jobs=100_000, rounds=5)
    rounds = f"{asked.rounds} x ({SINGLES} single, {BATCHES} batches of {BATCH})"
    head("waiting", {"rounds": rounds, "redis server": "unix socket, appendonly yes, appendfsync everysec"})
    scenarios = serve("valkey", asked.jobs, asked.rounds, restart=True)
    try:
        scenarios += serve("redis7", asked.jobs, asked.rounds, restart=False)
    except ServerFailed as error:
        note(f"Redis 7.0 is left out: {error}")
    report(asked.jobs, scenarios, groups_and_limits(asked.jobs, asked.rounds))


def serve(binary: str, depth: int, rounds: int, *, restart: bool) -> list[Scenario]:
    """Measure on two servers of one kind, and again after their restart if asked."""
    with ExitStack() as stack:
        worlds = [stack.enter_context(World(binary=binary)) for _ in (0, 1)]
        name = server_versions(worlds[0])["redis server"].partition(",")[0]
        few = Lane(worlds[0], FEW)
        say(f"{name}: publishing {depth:,} jobs ...")
        started = time.perf_counter()
        many = Lane(worlds[1], depth)
        note(f"{name}: published at {depth / (time.perf_counter() - started):,.0f} jobs/s in chunks of {CHUNK}")
        few.rest()
        many.rest()
        lanes = (few.bytes_a_job, many.bytes_a_job)
        found = [Scenario(f"{name}, just published", *lanes, [measure(few, many) for _ in range(rounds)])]
        if restart:
            few.restart()
            many.restart()
            found.append(Scenario(f"{name}, after a restart", *lanes, [measure(few, many) for _ in range(rounds)]))
        few.broker.close()
        many.broker.close()
    return found


def measure(few: Lane, many: Lane) -> Both:
    """Measure both lanes, call by call in turn, so that what the machine does meanwhile hits both."""
    took: dict[tuple[Lane, int], list[float]] = {(lane_, count): [] for lane_ in (few, many) for count in (1, BATCH)}
    bare: dict[tuple[Lane, int], list[float]] = {pair: [] for pair in took}
    for count, times in ((1, SINGLES), (BATCH, BATCHES)):
        for turn in range(times):
            for one in (few, many) if turn % 2 == 0 else (many, few):
                took[one, count].append(one.claim_and_settle(count))
                bare[one, count].append(one.bare(count))
    costs = [
        Cost(
            *(percentile(took[one, count], share) for count in (1, BATCH) for share in (0.5, 0.95)),
            *(percentile(bare[one, count], 0.5) for count in (1, BATCH)),
        )
        for one in (few, many)
    ]
    return Both(*costs)


def report(depth: int, scenarios: list[Scenario], more: list[Row]) -> None:
    """Print the rows."""
    flat, small = Bar("ratio", "<=", 1.2), Bar("value", "<", 250)
    rows = [
        Row(
            f"Redis memory a waiting job, {depth:,} waiting; {one.name}",
            figure(one.many_bytes),
            "bytes",
            "",
            None,
            small,
        )
        for one in scenarios
        if one.name.endswith("published")
    ]
    for what, field, bar in (
        ("1, p50", "single_p50", flat),
        ("1, p95", "single_p95", None),
        (f"{BATCH}, p50", "batch_p50", flat),
        (f"{BATCH}, p95", "batch_p95", None),
        ("1, p50", "bare_single_p50", None),
        (f"{BATCH}, p50", "bare_batch_p50", None),
    ):
        does = "the limit: bare commands, the same changes," if field.startswith("bare") else "claim + settle"
        rows += [
            Row(
                f"{does} of {what}, {depth:,} waiting; {one.name}",
                _each([both.many for both in one.rounds], field),
                "us",
                f"{FEW:,} waiting",
                _each([both.few for both in one.rounds], field),
                bar,
            )
            for one in scenarios
        ]
    finish("waiting", rows + more)


def _each(costs: list[Cost], field: str) -> Figure:
    return figure([getattr(cost, field) for cost in costs])


if __name__ == "__main__":
    main()
