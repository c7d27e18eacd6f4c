"""Measure what enqueueing costs the caller.

``many``: one call inserts 10,000 jobs, then the transaction commits and they are published; the call has a bound of
0.7 s. ``one``: a transaction that writes a business row and commits, with one job and without, in turn: what the job
adds, its INSERT, the larger commit and the hand-over to Redis included. Beside it, in turn, the limit: the same
row by a plain INSERT, and one XADD after the commit, which is what any such enqueueing has to do.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import psycopg
import redis
from harness import Bar, Row, figure, finish, head, in_turn, options, percentile
from world import World, server_versions

from sidestream import Jobs

MANY = 10_000
BUSINESS = "INSERT INTO bench_effect (number, note) VALUES (%s, 'an order was confirmed')"
ROW = """
    INSERT INTO sidestream_job (action, queue, payload)
    VALUES ('bench.nothing', 'default', '{"v":1,"args":[1],"kwargs":{}}') RETURNING id"""
STREAM = "bare:enqueue"
WARM_UP = 20


class Many(NamedTuple):
    """Seconds."""

    call: float
    to_the_end: float


class One(NamedTuple):
    """Milliseconds."""

    alone_p50: float
    with_job_p50: float
    with_job_p99: float
    added: float
    bare_added: float


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=500, quick_jobs=100)
    with World(postgres=True) as world, world.jobs() as jobs, psycopg.connect(world.dsn or "") as connection:
        head(
            "enqueue",
            {**server_versions(world), "jobs": f"{MANY:,} in one call; {asked.jobs} transactions of each kind"},
        )
        many = in_turn(asked.rounds, {"many": lambda: enqueue_many(jobs, connection)})["many"]
        one = in_turn(asked.rounds, {"one": lambda: enqueue_one(jobs, connection, world.client, asked.jobs)})["one"]
    alone = figure([found.alone_p50 for found in one])
    without = "the same transaction without a job"
    finish(
        "enqueue",
        [
            Row(f"{MANY:,} jobs in one call", figure([m.call for m in many]), "s", "", None, Bar("value", "<", 0.7)),
            Row(f"{MANY:,} jobs, with commit and publishing", figure([m.to_the_end for m in many]), "s"),
            Row(
                "one job adds to a transaction, p50",
                figure([o.added for o in one]),
                "ms",
                "",
                None,
                Bar("value", "<", 1),
            ),
            Row("the limit: a plain INSERT and an XADD add, p50", figure([o.bare_added for o in one]), "ms"),
            Row("transaction with one job, p50", figure([o.with_job_p50 for o in one]), "ms", without, alone),
            Row("transaction with one job, p99", figure([o.with_job_p99 for o in one]), "ms"),
        ],
    )


def enqueue_many(jobs: Jobs, connection: psycopg.Connection) -> Many:
    """Time one call for many jobs."""
    values = [jobs.job("bench.nothing", (number,)) for number in range(MANY)]
    with connection.transaction():
        connection.execute("SELECT 1")
    started = time.perf_counter()
    with jobs.transaction(connection) as tx:
        tx.enqueue_many(values)
        called = time.perf_counter()
    return Many(called - started, time.perf_counter() - started)


def enqueue_one(jobs: Jobs, connection: psycopg.Connection, client: redis.Redis, size: int) -> One:
    """Time transactions without a job, with one, and with what the server has to do for one, in turn."""
    alone, with_job, bare = [], [], []
    for number in range(size + WARM_UP):
        started = time.perf_counter()
        connection.execute(BUSINESS, (number,))
        connection.commit()
        alone.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        with jobs.transaction(connection) as tx:
            connection.execute(BUSINESS, (number,))
            tx.enqueue("bench.nothing", (number,))
        with_job.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        connection.execute(BUSINESS, (number,))
        connection.execute(ROW).fetchone()
        connection.commit()
        client.xadd(STREAM, {"n": number})
        bare.append((time.perf_counter() - started) * 1000)
    alone, with_job, bare = alone[WARM_UP:], with_job[WARM_UP:], bare[WARM_UP:]
    return One(
        percentile(alone, 0.5),
        percentile(with_job, 0.5),
        percentile(with_job, 0.99),
        more(with_job, alone),
        more(bare, alone),
    )


def more(these: list[float], alone: list[float]) -> float:
    """Return how much longer each took than the one without a job beside it, p50."""
    return percentile([one - without for one, without in zip(these, alone, strict=True)], 0.5)


if __name__ == "__main__":
    main()
