"""Measure jobs per second, each with its effect and "done" in one PostgreSQL transaction.

A worker with two children runs rows that were enqueued before. It is compared with two bare loops that receive the ids
and use the store's own acquire statement and update, the same table and indexes, and the same effect and commit. The
loops have no queue, lease, retry or limit, so the jobs of a dead loop do not run again. Rates are taken between the
stamps of the first and the last job.
"""

from __future__ import annotations

from typing import NamedTuple

import bare
import psycopg
from feeding import enqueue_rows
from harness import Bar, Figure, Row, figure, finish, head, in_turn, note, options
from stamps import Stamps
from world import Reading, World, server_versions

DEADLINE = 300.0


class Drain(NamedTuple):
    """One drain."""

    rate: float
    used: Reading
    jobs: int


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=6_000, quick_jobs=1_500)
    with World(postgres=True) as world:
        jobs = f"{asked.jobs:,} a drain: INSERT of one row + done, REPEATABLE READ, one commit each"
        head(
            "transactional",
            {**server_versions(world), "jobs": jobs, "sidestream": "1 supervisor, 2 children, lease 15 s"},
        )
        ledger = world.ledger(asked.jobs)
        found = in_turn(
            asked.rounds,
            {
                "sidestream": lambda: ours(world, ledger, asked.jobs),
                "bare loop, 2 processes": lambda: bare_loop(world, ledger, asked.jobs),
            },
        )
        effects = psycopg.connect(world.dsn or "").execute("SELECT count(*) FROM bench_effect").fetchone()
        if effects != (2 * asked.rounds * asked.jobs,):
            raise AssertionError(f"Expected {2 * asked.rounds * asked.jobs} effects, found {effects}.")
    worker, loop = found["sidestream"], found["bare loop, 2 processes"]
    rows = [
        Row(
            "jobs with an effect, one transaction each, 2 children",
            figure([drain.rate for drain in worker]),
            "jobs/s",
            "bare loop in 2 processes, same statements (survives no crash)",
            figure([drain.rate for drain in loop]),
            Bar("ratio", ">=", 0.8),
        )
    ]
    rows += [
        Row(
            f"CPU of {what}",
            cpu(worker, what),
            "us a job",
            "bare loop",
            cpu(loop, what) if what in ("postgres", "children") else None,
        )
        for what in ("postgres", "redis", "supervisor", "children")
    ]
    rows.append(Row("round trips to Redis", figure([drain.used.trips / drain.jobs for drain in worker]), "a job"))
    note("Limit: everything shares the cores; what Redis and the supervisor use is what the bare loop has left over.")
    finish("transactional", rows)


def ours(world: World, ledger: Stamps, size: int) -> Drain:
    """Drain ``size`` rows with the worker."""
    settle_database(world)
    ledger.clear()
    enqueue_rows(world, "bench.row", range(size))
    with world.worker(ledger, children=2) as worker:
        early = ledger.wait(size, DEADLINE, some=1, check=worker.check)
        before = world.read(worker)
        ledger.wait(size, DEADLINE, check=worker.check)
        used = world.read(worker) - before
    ledger.check(size)
    return Drain(ledger.rate(size), used, size - early)


def bare_loop(world: World, ledger: Stamps, size: int) -> Drain:
    """Drain ``size`` rows with two loops that know the ids."""
    settle_database(world)
    ledger.clear()
    ids = enqueue_rows(world, "bench.row", range(size), publish=False)
    pairs = list(enumerate(ids))
    with bare.processes(bare.transactions, [(world.dsn, ledger.path, pairs[half::2]) for half in (0, 1)]) as loops:
        early = ledger.wait(size, DEADLINE, some=1)
        before = world.read(loops=loops)
        ledger.wait(size, DEADLINE)
        used = world.read(loops=loops) - before
    ledger.check(size)
    return Drain(ledger.rate(size), used, size - early)


def settle_database(world: World) -> None:
    """Give every drain the same start: no dirty pages, no dead tuples, fresh statistics."""
    with psycopg.connect(world.dsn or "", autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def cpu(drains: list[Drain], what: str) -> Figure:
    """Return microseconds a job."""
    return figure([getattr(drain.used, what) / drain.jobs * 1e6 for drain in drains])


if __name__ == "__main__":
    main()
