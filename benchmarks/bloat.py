"""Measure whether the job table slows down when a million jobs pass through it at full rate.

One process enqueues batches of 1,000 so a few thousand jobs always wait; the worker runs them as fast as it can. The
action writes nothing, so all rows, pages and WAL are Sidestream's own. Rates are taken a tenth of the run at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from feeding import LOT, one_value
from harness import Bar, Row, figure, finish, head, note, options
from stamps import Stamps
from world import Worker, World, server_versions

WINDOWS = 10
AHEAD = 10_000
"""Jobs that wait at most; the feeder pauses above."""
DEADLINE = 300.0
"""Longest time without any job done."""
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
SIZES = """
    SELECT pg_table_size('sidestream_job'), pg_indexes_size('sidestream_job'),
           (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'sidestream_job')
"""


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=1_000_000, quick_jobs=20_000, rounds=1)
    window = asked.jobs // WINDOWS
    with World(postgres=True) as world:
        head("bloat", {**server_versions(world), "jobs": f"{asked.jobs:,} rows, 2 children, windows of {window:,}"})
        ledger = world.ledger(asked.jobs)
        wal = one_value(world, WAL)
        rates, sizes = [], []
        level = {"SIDESTREAM_LOG_LEVEL": "info"}
        with feeder(world, ledger, asked.jobs), world.worker(ledger, children=2, **level) as worker:
            start = world.read(worker)
            for end in range(window, asked.jobs + 1, window):
                wait_for(ledger, end, worker)
                done = sorted(ledger.times(end)[end - window : end])
                rates.append((window - 1) / (done[-1] - done[0]))
                sizes.append(look(world))
                table, indexes, dead = sizes[-1]
                size = f"table {table / 2**20:,.0f} MiB, indexes {indexes / 2**20:,.0f} MiB, {dead:,} dead"
                note(f"{end:>9,} jobs: {rates[-1]:,.0f}/s, {size}")
            used = world.read(worker) - start
        again = ran_again(world, ledger, asked.jobs)
        wal = int(one_value(world, WAL) - wal)
        kept = one_value(world, "SELECT count(*) FROM sidestream_job WHERE state = 'done'")
        if kept != asked.jobs:
            raise AssertionError(f"{asked.jobs} jobs were enqueued, {kept} are done.")
    table, indexes, dead = sizes[-1]
    first, last = figure(rates[0]), figure(rates[-1])
    finish(
        "bloat",
        [
            Row(f"last {window:,} jobs", last, "jobs/s", f"first {window:,} jobs", first, Bar("ratio", ">=", 0.8)),
            Row("slowest tenth", figure(min(rates)), "jobs/s", f"first {window:,} jobs", first),
            Row("table a done job", figure(table / asked.jobs), "bytes"),
            Row("indexes a done job", figure(indexes / asked.jobs), "bytes"),
            Row("WAL a job (insert to done)", figure(wal / asked.jobs), "bytes"),
            Row("dead tuples at the end, of all jobs", figure(100 * dead / asked.jobs), "%"),
            Row(
                "most dead tuples at the end of a tenth, of all jobs",
                figure(100 * max(s[2] for s in sizes) / asked.jobs),
                "%",
            ),
            Row("bodies that ran again after a conflict, as the worker's log tells", figure(again), "jobs"),
            Row("CPU of postgres, the feeder's part included", figure(used.postgres / asked.jobs * 1e6), "us a job"),
        ],
    )


def ran_again(world: World, ledger: Stamps, size: int) -> int:
    """Return how many jobs' bodies ran more than once; raise unless as many were rolled back for a conflict.

    A stamp is not of the transaction: a job whose transaction met a conflict stamps again when it is tried again.
    """
    missing, repeated = ledger.exceptions(size)
    lines = (world.folder / "worker.log").read_text().splitlines()
    told = [line for line in lines if "met a conflict" in line]
    for line in told[:5]:
        note(line)
    if missing or repeated > len(told):
        for number in ledger.repeated(size):
            note(f"ran twice: {number}, {row_of(world, number)}")
        for line in [line for line in lines if '"info"' not in line.lower()][:20]:
            note(line)
        raise AssertionError(f"{missing} of {size} jobs did not run, {repeated} ran twice; {len(told)} conflicts told.")
    return repeated


def row_of(world: World, number: int) -> str:
    """Return what the table says of the job whose argument was ``number``: the row, and its attempts."""
    found = """
        SELECT row_to_json(j), (SELECT json_agg(a) FROM sidestream_attempt a WHERE a.job_id = j.id)
        FROM sidestream_job j WHERE payload::jsonb -> 'args' = to_jsonb(ARRAY[%s::integer])"""
    with psycopg.connect(world.dsn or "") as connection:
        return str(connection.execute(found, (number,)).fetchall())


@contextmanager
def feeder(world: World, ledger: Stamps, size: int) -> Iterator[None]:
    """Keep jobs waiting from a thread until ``size`` were enqueued."""
    stop, failed = threading.Event(), []

    def feed() -> None:
        try:
            with world.jobs() as jobs, psycopg.connect(world.dsn or "") as connection:
                for start in range(0, size, LOT):
                    while start - ledger.count(start) > AHEAD:
                        if stop.wait(0.05):
                            return
                    with jobs.transaction(connection) as tx:
                        tx.enqueue_many([jobs.job("bench.nothing", (n,)) for n in range(start, min(start + LOT, size))])
        except Exception as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=feed, name="feeder")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def wait_for(ledger: Stamps, upto: int, worker: Worker) -> None:
    """Return when the first ``upto`` jobs ran; give up when none does for a while."""
    before, since = -1, time.monotonic()
    while (done := ledger.count(upto)) < upto:
        if done != before:
            before, since = done, time.monotonic()
        elif time.monotonic() - since > DEADLINE:
            raise TimeoutError(f"No job ran for {DEADLINE:.0f} s; {done:,} of {upto:,} are done.")
        worker.check()
        time.sleep(0.25)


def look(world: World) -> tuple[int, int, int]:
    """Return the bytes of the table and of its indexes, and the dead tuples that PostgreSQL counts."""
    with psycopg.connect(world.dsn or "", autocommit=True) as connection:
        table, indexes, dead = connection.execute(SIZES).fetchone() or (0, 0, 0)
    return int(table), int(indexes), int(dead or 0)


if __name__ == "__main__":
    main()
