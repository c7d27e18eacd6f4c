"""A pause and a limit take effect on every host within a second, and survive an emptied Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from sidestream.broker.redis.keys import PREFIX
from sidestream.job.rules import Limit, Pause, Scope
from sidestream.store import rules, schema
from sidestream.store.cursor import Cursor
from tests.chaos import ledger
from tests.chaos.app import SPANS
from tests.chaos.programs import Launcher
from tests.chaos.world import RENEW, World

WITHIN = 1.0
"""Seconds from the commit of a rule to its effect everywhere."""
TIMES = 3
"""How often each change is made: the quickest is judged, the others may have waited for a busy machine."""
LONG = 0.05


@pytest.fixture
def world(launcher: Launcher) -> Iterator[World]:
    """Two workers on hosts of their own, with two children each, and more jobs than the test can use."""
    with World(supervisors=2, hosts=2, seed="rules", launcher=launcher) as world:
        (world.folder / SPANS).touch()
        world.give(world.folder / SPANS)
        world.start_workers()
        for worker in world.workers:
            world.wait_for_children(worker)
        made = [world.jobs().job("share.work", (f"j{n}",), {"seconds": LONG, "slot": "all"}) for n in range(2_000)]
        with world.jobs().transaction(world.connection()) as tx:
            tx.enqueue_many(made)
        wait_for_starts(world, 0.0)
        yield world


def rule(world: World, write: Callable[[Cursor], object], running: int | None = None) -> float:
    """Write a rule; return when it was committed.

    With ``running``, wait until Redis has it and no more than so many of the leases granted before are left.
    """
    with world.connection().cursor() as cursor:
        field = f"rules:{schema.identify(cursor).tag.hex()}"
        write(cursor)
        version = rules.version(cursor)
    world.connection().commit()
    committed = time.monotonic()

    def governs() -> bool:
        given = world.valkey.hget(f"{PREFIX}meta", field) or b"0"
        return int(given.partition(b"-")[0]) >= version

    if running is not None:
        world.wait_until(governs, "Redis has the rule")
        world.wait_until(lambda: world.valkey.hlen(f"{PREFIX}leases") <= running, "what ran before the rule has ended")
    return committed


def starts(world: World, after: float) -> list[tuple[int, float]]:
    """Return (pid, moment) of every start after a moment."""
    return [
        (int(w[3]), float(w[4])) for w in ledger.lines(world.folder / SPANS) if w[0] == "start" and float(w[4]) > after
    ]


def wait_for_starts(world: World, after: float) -> float:
    """Wait until both hosts started a job after a moment; return when the second of them did."""
    found: list[float] = []

    def both() -> bool:
        found.clear()
        for worker in world.workers:
            pids = set(world.children(worker))
            moments = [at for pid, at in starts(world, after) if pid in pids]
            if not moments:
                return False
            found.append(min(moments))
        return True

    world.wait_until(both, "both hosts started a job")
    return max(found)


def none_starts(world: World, seconds: float) -> None:
    """Look for so long that nothing starts from now on."""
    since = time.monotonic()
    time.sleep(seconds)  # the span that is looked at, not a wait
    assert starts(world, since) == []


def pause_and_resume(world: World, pause: Pause, while_paused: Callable[[], None] = lambda: None) -> None:
    """Pause and resume both hosts some times; look that nothing starts, and how soon each takes effect."""
    stopped, resumed = [], []
    for number in range(TIMES):
        at = rule(world, lambda cur: rules.pause(cur, pause, by="test"), running=0)
        stopped.append(max((start - at for _, start in starts(world, at)), default=0.0))
        none_starts(world, 1.5 if number == 0 else LONG)
        if number == 0:
            while_paused()
        at = rule(world, lambda cur: rules.resume(cur, pause))
        resumed.append(wait_for_starts(world, at) - at)
    for word, took in (("started for", stopped), ("went on after", resumed)):
        print(f"both hosts {word}", ", ".join(f"{seconds:.2f}" for seconds in took), "s")
        assert min(took) < WITHIN


def at_once(world: World, after: float, until: float) -> int:
    """Return the most spans that overlapped between two moments."""
    edges = []
    for word, _, _, _, at in ledger.lines(world.folder / SPANS):
        edges.append((float(at), 1 if word == "start" else -1))
    running = most = 0
    for at, step in sorted(edges):
        running += step
        if after < at < until:
            most = max(most, running)
    return most


def test_a_pause_stops_both_hosts_within_a_second_and_survives_an_emptied_redis(world: World) -> None:
    def empty() -> None:
        world.redis.flushall()
        none_starts(world, 10 * RENEW)

    pause_and_resume(world, Pause(action="share.work"), empty)


def test_a_paused_queue_stops_both_hosts_within_a_second(world: World) -> None:
    pause_and_resume(world, Pause(queue="default"))


def test_a_limit_binds_both_hosts_within_a_second_and_survives_an_emptied_redis(world: World) -> None:
    def limit(concurrency: int, running: int | None = None) -> float:
        new = Limit(concurrency=concurrency)
        return rule(world, lambda cur: rules.set_limit(cur, Scope.ACTION, "share.work", new, by="test"), running)

    def three_run(since: float) -> bool:
        return at_once(world, since, time.monotonic()) == 3

    lowered, took = [], []
    for number in range(TIMES):
        at = limit(1, running=1)
        bound = time.monotonic()
        lowered.append(bound - at)
        time.sleep(1.5 if number == 0 else 4 * LONG)  # the span that is looked at
        assert at_once(world, bound, time.monotonic()) == 1
        if number == 0:
            world.redis.flushall()
            flushed = time.monotonic()
            world.wait_until(lambda flushed=flushed: len(starts(world, flushed)) > 5, "jobs run again after FLUSHALL")
            assert at_once(world, flushed, time.monotonic()) == 1
        raised = limit(3)
        world.wait_until(lambda raised=raised: three_run(raised), "three run at once")
        took.append(time.monotonic() - raised)
        assert at_once(world, bound, time.monotonic()) == 3
    print(f"one ran after {lowered} s, three ran at once after {took} s")
    assert min(lowered) < WITHIN
    assert min(took) < WITHIN + 1.0
