"""Measure the time from enqueue to the first line of the action on an idle worker.

Ours: a direct job, from the call of ``enqueue_direct`` to the first line in the child. Theirs: the bare hop, from XADD
in one process to the return of a blocked XREADGROUP in another, over the same unix socket of the same server. Beside it
the transactional job, whose time includes INSERT, COMMIT (with its fsync) and the publishing after it. One job after
another, 20 ms apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import bare
import psycopg
from feeding import payload
from harness import Bar, Figure, Row, figure, finish, head, in_turn, options, percentile
from stamps import Stamps
from world import World, server_versions

PAUSE = 0.02
WARM_UP = 20
STREAM = "bare:hop"


class Times(NamedTuple):
    """Milliseconds of one round."""

    p50: float
    p99: float


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=200, quick_jobs=50)
    size = asked.jobs + WARM_UP
    with (
        World(postgres=True) as world,
        world.jobs() as jobs,
        psycopg.connect(world.dsn or "") as connection,
    ):
        head("latency", {**server_versions(world), "jobs": f"{asked.jobs} a round, {PAUSE * 1000:.0f} ms apart"})
        ledger = world.ledger(size)

        def direct(number: int) -> None:
            jobs.enqueue_direct("bench.noop", (payload(number),))

        def transactional(number: int) -> None:
            with jobs.transaction(connection) as tx:
                tx.enqueue("bench.row", (number,))

        def bare_hop(number: int) -> None:
            world.client.xadd(STREAM, {"n": number})

        world.client.xgroup_create(STREAM, bare.GROUP, id="0", mkstream=True)
        with (
            bare.processes(bare.hop, [(world.redis.url, STREAM, ledger.path)]),
            world.worker(ledger),
        ):
            found = in_turn(
                asked.rounds,
                {
                    "bare hop": lambda: one_round(ledger, bare_hop, size),
                    "direct job": lambda: one_round(ledger, direct, size),
                    "transactional job": lambda: one_round(ledger, transactional, size),
                },
            )
    hop, ours, rows = found["bare hop"], found["direct job"], found["transactional job"]
    against = "bare XADD -> blocked XREADGROUP"
    finish(
        "latency",
        [
            Row("direct job, enqueue -> start, p50", p50(ours), "ms", against, p50(hop), Bar("ratio", "<=", 2.5)),
            Row("direct job, enqueue -> start, p99", p99(ours), "ms", against, p99(hop), Bar("ratio", "<=", 4)),
            Row("transactional job (with INSERT, COMMIT), enqueue -> start, p50", p50(rows), "ms", against, p50(hop)),
            Row("transactional job (with INSERT, COMMIT), enqueue -> start, p99", p99(rows), "ms", against, p99(hop)),
        ],
    )


def one_round(ledger: Stamps, enqueue: Callable[[int], None], size: int) -> Times:
    """Enqueue job after job and return how long each took to start; the first ones only warm up."""
    ledger.clear()
    called = []
    for number in range(size):
        time.sleep(PAUSE)  # the pace of the measurement, not a wait for anything
        called.append(time.time())
        enqueue(number)
        if number == 0:
            ledger.wait(1, 30)  # a worker that was just started is ready when its first job ran
    ledger.wait(size, 30)
    ledger.check(size)
    took = [(ran - at) * 1000 for ran, at in zip(ledger.times(size), called, strict=True)][WARM_UP:]
    return Times(percentile(took, 0.5), percentile(took, 0.99))


def p50(rounds: list[Times]) -> Figure:
    """Return the medians of the rounds."""
    return figure([times.p50 for times in rounds])


def p99(rounds: list[Times]) -> Figure:
    """Return the 99th percentiles of the rounds."""
    return figure([times.p99 for times in rounds])


if __name__ == "__main__":
    main()
