"""A pause and a limit govern every host within a second of their commit, and survive an emptied Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from sidestream.job.rules import Limit, Pause, Scope
from sidestream.store import rules
from sidestream.store.cursor import Cursor
from tests.chaos import ledger
from tests.chaos.app import SPANS
from tests.chaos.world import RENEW, World

WITHIN = 1.0
"""Seconds from the commit of a rule to its effect everywhere."""
LONG = 0.05


@pytest.fixture
def world() -> Iterator[World]:
    """Two supervisors on hosts of their own, with two children each, and more jobs than the test can use."""
    with World(supervisors=2, hosts=2, seed="rules") as world:
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


def rule(world: World, write: Callable[[Cursor], object]) -> float:
    """Write a rule; return when it was committed."""
    with world.connection().cursor() as cursor:
        write(cursor)
    world.connection().commit()
    return time.monotonic()


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


def none_starts(world: World, since: float, seconds: float) -> None:
    """Look for so long that nothing starts from ``since`` on."""
    time.sleep(max(0.0, since + seconds - time.monotonic()))  # the span that is looked at, not a wait
    assert starts(world, since) == []


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
    paused = rule(world, lambda cur: rules.pause(cur, Pause(action="share.work"), by="test"))
    none_starts(world, paused + WITHIN, 1.5)
    world.redis.flushall()
    none_starts(world, time.monotonic(), 10 * RENEW)
    resumed = rule(world, lambda cur: rules.resume(cur, Pause(action="share.work")))
    took = wait_for_starts(world, resumed) - resumed
    print(f"both hosts went on {took:.2f} s after the resume")
    assert took < WITHIN


def test_a_paused_queue_stops_both_hosts_within_a_second(world: World) -> None:
    paused = rule(world, lambda cur: rules.pause(cur, Pause(queue="default"), by="test"))
    none_starts(world, paused + WITHIN, 1.5)
    resumed = rule(world, lambda cur: rules.resume(cur, Pause(queue="default")))
    assert wait_for_starts(world, resumed) - resumed < WITHIN


def test_a_limit_binds_both_hosts_within_a_second_and_survives_an_emptied_redis(world: World) -> None:
    limited = rule(world, lambda cur: rules.set_limit(cur, Scope.ACTION, "share.work", Limit(concurrency=1), by="test"))
    time.sleep(WITHIN + 1.5)  # the span that is looked at
    assert at_once(world, limited + WITHIN, time.monotonic()) == 1
    world.redis.flushall()
    flushed = time.monotonic()
    world.wait_until(lambda: len(starts(world, flushed)) > 5, "jobs run again after FLUSHALL")
    assert at_once(world, flushed + LONG, time.monotonic()) == 1
    raised = rule(world, lambda cur: rules.set_limit(cur, Scope.ACTION, "share.work", Limit(concurrency=3), by="test"))
    world.wait_until(lambda: at_once(world, raised, time.monotonic()) == 3, "three run at once")
    assert time.monotonic() - raised < WITHIN + 1.0
    assert at_once(world, flushed + LONG, time.monotonic()) == 3
