"""A Redis outage under load: work continues in PostgreSQL, and nothing runs twice afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.chaos import checker
from tests.chaos.world import PATIENCE, World

JOBS_PER_SECOND = 20
DONE = """
    SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM ledger l WHERE l.token = p.token))
    FROM promised p WHERE at <= %s"""
TRAFFIC = {"plain": 5.0, "keyed": 5.0, "fail": 1.0, "unpublished": 1.0, "rollback": 1.0, "follow": 1.0}


@dataclass
class Absence:
    """What happened while Redis was away and after."""

    #: Promised while it was away, and how many of them were not done when it came back.
    promised: int
    missing: int
    #: Seconds after the last of them was promised until all were done, Redis still away.
    late: float
    #: The final verdict.
    verdict: checker.Verdict


def away(world: World, seconds: float) -> Absence:
    """Stop Redis for ``seconds`` in a running ``world`` under traffic; its producer is started and stopped here."""
    # A transaction makes about 1.6 jobs; the producer's own time between two of them is a few milliseconds.
    producer = world.add_producer(TRAFFIC, pace=1.6 / JOBS_PER_SECOND)
    world.start_workers()
    for worker in world.workers:
        world.wait_for_children(worker)
    producer.start()
    _wait_for_work(world)
    world.redis.kill()
    time.sleep(seconds)  # the outage itself: what is measured is what gets done in it
    [(until,)] = world.query("SELECT clock_timestamp()")
    began = time.monotonic()
    while (counted := world.query(DONE, until)[0])[1] and time.monotonic() < began + PATIENCE:
        time.sleep(0.05)
    late = time.monotonic() - began
    world.redis.start()
    _wait_for_work(world)
    producer.terminate(PATIENCE)
    verdict = checker.wait_until_settled(world.connection(), world.folder, PATIENCE, world.dead_direct)
    return Absence(*counted, late, verdict)


def main(seconds: float, seed: str) -> int:
    """Run it as a script and return the exit code."""
    print(f"chaos: Redis away for {seconds:g} s at {JOBS_PER_SECOND} jobs/s, seed {seed}", flush=True)
    with World(seed=seed) as world:
        found = away(world, seconds)
    print(
        f"{found.promised} jobs promised while it was away, {found.missing} of them not done before it came back "
        f"(the last of them after {found.late:.1f} s)"
    )
    print(f"after all: {found.verdict}")
    return 1 if found.missing or found.verdict.violations else 0


def _wait_for_work(world: World) -> None:
    [(before,)] = world.query("SELECT count(*) FROM ledger")
    deadline = time.monotonic() + PATIENCE
    while world.query("SELECT count(*) FROM ledger")[0][0] < before + 20:
        if time.monotonic() > deadline:
            raise AssertionError(f"Nothing is done; the worker's log ends with:\n{world.last_words(world.workers[0])}")
        time.sleep(0.05)
