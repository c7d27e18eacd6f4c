"""Redis away for a while: work goes on over PostgreSQL, and nothing runs twice when it is back."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.chaos import checker
from tests.chaos.world import PATIENCE, World

JOBS_PER_SECOND = 20
TRAFFIC = {"plain": 5.0, "keyed": 5.0, "fail": 1.0, "unpublished": 1.0, "rollback": 1.0, "follow": 1.0}


@dataclass
class Absence:
    """What happened while Redis was away and after."""

    #: Promised, and with its effect, when Redis came back; the last seconds' jobs excepted.
    promised: int
    missing: int
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
    promised, missing = world.query(
        "SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM ledger l WHERE l.token = p.token))"
        " FROM promised p WHERE at < clock_timestamp() - interval '5 seconds'"
    )[0]
    world.redis.start()
    _wait_for_work(world)
    producer.terminate(PATIENCE)
    verdict = checker.wait_until_settled(world.connection(), world.folder, PATIENCE, world.dead_direct)
    return Absence(promised, missing, verdict)


def main(seconds: float, seed: str) -> int:
    """Run it as a script and return the exit code."""
    print(f"chaos: Redis away for {seconds:g} s at {JOBS_PER_SECOND} jobs/s, seed {seed}", flush=True)
    with World(seed=seed) as world:
        found = away(world, seconds)
    print(f"{found.promised} jobs promised while it was away, {found.missing} of them not done by then")
    print(f"after all: {found.verdict}")
    return 1 if found.missing or found.verdict.violations else 0


def _wait_for_work(world: World) -> None:
    [(before,)] = world.query("SELECT count(*) FROM ledger")
    deadline = time.monotonic() + PATIENCE
    while world.query("SELECT count(*) FROM ledger")[0][0] < before + 20:
        if time.monotonic() > deadline:
            raise AssertionError(f"Nothing is done; the worker's log ends with:\n{world.last_words(world.workers[0])}")
        time.sleep(0.05)
