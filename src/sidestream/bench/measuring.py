"""Measure round trips, the cost of enqueuing, throughput, and the latency of an idle worker.

Every stage has a time limit, so that the benchmark takes under a minute on servers of any speed. A stage that reaches
its limit reports what it has measured by then.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

from sidestream.bench import scratch_tables
from sidestream.bench.actions import EMPTY, ROW
from sidestream.bench.ledger import Ledger
from sidestream.client import Client
from sidestream.errors import BenchRefused, SidestreamError

ROUND_TRIPS = 200
PAUSE = 0.02
"""Seconds between two jobs of the idle stage."""
PACED = 60
"""Number of jobs of an idle stage."""
WARM_UP = 5
"""Number of jobs at the start of an idle stage that are not counted."""
TRANSACTIONS = 100
BATCH = 1000
"""Rows inserted with one call."""
ENQUEUE_LIMIT = 6.0
"""Most seconds for enqueueing the jobs of a drain."""
STAGE_LIMIT = 8.0
"""Most seconds for a drain or an idle stage."""
START_LIMIT = 20.0
"""Most seconds until a started worker runs its first job."""
FEWEST = 20
"""Fewest jobs of a drain with a meaningful rate."""


class Row(NamedTuple):
    """One measurement of the result."""

    #: What was measured.
    what: str
    #: The median, or the rate.
    value: float
    unit: str
    #: The 99th percentile; None for a single value.
    p99: float | None = None
    #: The size of the sample.
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """The parts of the benchmark that a measurement uses."""

    jobs: Client
    ledger: Ledger
    #: Starts a worker and stops it at the end of the block; yields a check that raises when it has ended.
    worker: Callable[[], AbstractContextManager[Callable[[], None]]]
    #: Makes one round trip to Redis.
    ping: Callable[[], None]
    #: A connection to the benchmark's schema, not in autocommit mode; None without a database.
    connection: psycopg.Connection[Any] | None
    #: Number of direct jobs of the drain; there are a fifth as many rows.
    size: int
    children: int

    @property
    def direct(self) -> range:
        """The numbers of the drained direct jobs."""
        return range(self.size)

    @property
    def rows(self) -> range:
        """The numbers of the drained rows."""
        return range(self.size, self.size + self.size // 5)

    @property
    def paced_direct(self) -> range:
        """The numbers of the direct jobs of the idle stage."""
        return range(self.rows.stop, self.rows.stop + PACED)

    @property
    def paced_rows(self) -> range:
        """The numbers of the rows of the idle stage."""
        return range(self.paced_direct.stop, self.paced_direct.stop + PACED)


def ledger_size(size: int) -> int:
    """Return the total number of jobs of a benchmark that drains ``size`` direct jobs."""
    return size + size // 5 + 2 * PACED


def measure(bench: Bench, say: Callable[[str], None]) -> list[Row]:
    """Run all measurements; ``say`` receives the name of each stage.

    Raises:
        BenchRefused: The worker did not start, or ended unexpectedly.
        SidestreamError: A server failed, or a job ran twice.
    """
    say("round trips")
    rows = [timed("round trip to Redis", (_took(bench.ping) for _ in range(ROUND_TRIPS)))]
    rows += _round_trips(bench)
    say("enqueueing direct jobs")
    costs, enqueued = _enqueue_direct(bench)
    rows.append(timed("enqueue a direct job", costs))
    say("a worker that drains them, then idles")
    with bench.worker() as check:
        rows.append(_drained(bench, "empty direct jobs", enqueued, check))
        rows.append(_idle(bench, "enqueue to start, idle: direct job", bench.paced_direct, _direct(bench), check))
        if bench.connection is not None:
            transactional = _transactional(bench, bench.connection)
            rows.append(_idle(bench, "enqueue to start, idle: row", bench.paced_rows, transactional, check))
    if bench.connection is not None:
        say("enqueueing rows")
        rows += _enqueue_rows(bench, bench.connection)
        say("a worker that drains them")
        with bench.worker() as check:
            rows.append(_drained(bench, "jobs in a transaction each", bench.rows, check))
    twice = bench.ledger.doubled(range(bench.ledger.size))
    if twice:
        raise SidestreamError(
            f"{twice} jobs ran twice, which must never happen; please report it and attach the worker's log."
        )
    return rows


def timed(what: str, seconds: Iterable[float], note: str = "") -> Row:
    """Return the row for a sample of durations."""
    found = sorted(second * 1000 for second in seconds)
    p99 = found[min(len(found) - 1, int(0.99 * len(found)))]
    return Row(what, statistics.median(found), "ms", p99, note or f"{len(found):,} times")


def _took(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _round_trips(bench: Bench) -> list[Row]:
    connection = bench.connection
    if connection is None:
        return []
    with connection.cursor() as cursor:
        asked = [_took(lambda: scratch_tables.ask(cursor)) for _ in range(ROUND_TRIPS)]
        connection.commit()
        written = []
        for number in range(TRANSACTIONS):
            started = time.perf_counter()
            scratch_tables.write(cursor, number)
            connection.commit()
            written.append(time.perf_counter() - started)
    return [timed("round trip to PostgreSQL", asked), timed("your transaction of one row, no job", written)]


# -- enqueueing --------------------------------------------------------------------------------------------------------


def _direct(bench: Bench) -> Callable[[int], object]:
    def enqueue(number: int) -> object:
        payload = {"model": "sale.order", "record_id": number, "action": "empty", "company_id": 1}
        return bench.jobs.enqueue_direct(EMPTY, (payload,), timeout=5)

    return enqueue


def _transactional(bench: Bench, connection: psycopg.Connection[Any]) -> Callable[[int], object]:
    def enqueue(number: int) -> object:
        with bench.jobs.transaction(connection) as tx:
            return tx.enqueue(ROW, (number,))

    return enqueue


def _enqueue_direct(bench: Bench) -> tuple[list[float], range]:
    """Enqueue the direct jobs of the drain up to the time limit; return their costs and numbers."""
    enqueue, costs, until = _direct(bench), [], time.monotonic() + ENQUEUE_LIMIT
    for number in bench.direct:
        costs.append(_took(lambda number=number: enqueue(number)))  # type: ignore[misc]
        if time.monotonic() > until:
            break
    return costs, range(len(costs))


def _enqueue_rows(bench: Bench, connection: psycopg.Connection[Any]) -> list[Row]:
    """Enqueue the rows to run: some with a row of the application each, the others in batches."""
    single = bench.rows[: min(TRANSACTIONS, len(bench.rows) // 2)]
    inserted, together = [], []
    with connection.cursor() as cursor:
        for number in single:
            started = time.perf_counter()
            with bench.jobs.transaction(connection) as tx:
                scratch_tables.write(cursor, number)
                before = time.perf_counter()
                tx.enqueue(ROW, (number,))
                inserted.append(time.perf_counter() - before)
            together.append(time.perf_counter() - started)
    found = [
        timed("enqueue a row: the call itself", inserted),
        timed("your transaction of one row, with a job", together, "with commit and publishing"),
    ]
    rest = bench.rows[len(single) :]
    for start in range(0, len(rest), BATCH):
        lot = [bench.jobs.job(ROW, (number,)) for number in rest[start : start + BATCH]]
        with bench.jobs.transaction(connection) as tx:
            cost = _took(lambda lot=lot, tx=tx: tx.enqueue_many(lot))  # type: ignore[misc]
        if start == 0:
            found.append(Row(f"enqueue {len(lot):,} rows in one call", cost * 1000, "ms"))
    return found


# -- running ----------------------------------------------------------------------------------------------------------


def _drained(bench: Bench, what: str, numbers: range, check: Callable[[], None]) -> Row:
    """Wait until ``numbers`` have run; return the rate from the first start to the last."""
    _await_first(bench, numbers, check)
    done = bench.ledger.wait(numbers, STAGE_LIMIT, check)
    if done < min(FEWEST, len(numbers)):
        raise BenchRefused(
            f"Only {done} of {len(numbers):,} jobs ran within {STAGE_LIMIT:.0f} s; try again on an idle machine."
        )
    times = [at for number in numbers if (at := bench.ledger.at(number))]
    rate = (len(times) - 1) / max(max(times) - min(times), 1e-6)
    note = f"{done:,} jobs, {bench.children} children"
    if done < len(numbers):
        note += f", of {len(numbers):,} within the time limit"
        bench.ledger.wait(numbers, STAGE_LIMIT, check)
    return Row(what, rate, "jobs/s", None, note)


def _await_first(bench: Bench, numbers: Sequence[int], check: Callable[[], None]) -> None:
    until = time.monotonic() + START_LIMIT
    while not any(bench.ledger.at(number) for number in numbers):
        check()
        if time.monotonic() > until:
            raise BenchRefused(
                f"The worker ran no job within {START_LIMIT:.0f} s; try again when the machine is less busy."
            )
        time.sleep(PAUSE)


def _idle(bench: Bench, what: str, numbers: range, enqueue: Callable[[int], object], check: Callable[[], None]) -> Row:
    """Enqueue jobs one by one, each shortly after the previous one has run."""
    called: dict[int, float] = {}
    until = time.monotonic() + STAGE_LIMIT
    for number in numbers:
        time.sleep(PAUSE)  # the interval of the measurement
        called[number] = time.time()
        enqueue(number)
        bench.ledger.wait(range(number, number + 1), STAGE_LIMIT, check)
        if time.monotonic() > until:
            break
    took = [ran - at for number, at in called.items() if (ran := bench.ledger.at(number))]
    took = took[WARM_UP:] or took
    if not took:
        raise BenchRefused(
            f"No job started within {STAGE_LIMIT:.0f} s on an idle worker; try again when the machine is less busy."
        )
    return timed(what, took, f"{len(took)} jobs, {PAUSE * 1000:.0f} ms apart")
