"""A duplicate that replaces: what it changes of the job that waits reaches Redis with its commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from sidestream import Jobs
from sidestream.broker.protocol import Broker, lane
from sidestream.executors.row_opening import verdict_of
from sidestream.job.outcome import Release, ReleaseReason
from sidestream.store import opening
from sidestream.worker.bookkeeper import Bookkeeper
from sidestream.worker.options import WorkerOptions
from sidestream.worker.state import WorkerState
from sidestream.worker.wire import Finding
from tests.integration.test_client import claimed, tag


def test_what_a_duplicate_replaces_counts_at_once(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
    def enqueue(number: int, **options: Any) -> int:
        with jobs.transaction(connection) as tx:
            job_id = tx.enqueue("sync", [number], unique="sync", on_conflict="replace", **options)
        assert tx.published
        return job_id

    first = enqueue(1, delay=3600)
    assert claimed(broker, dsn) == []
    assert enqueue(2) == first
    assert claimed(broker, dsn) == [first]
    assert enqueue(3, delay=3600) == first, "it is handed off, and not running yet"
    with jobs.transaction(connection) as tx:
        other = tx.enqueue("sync", [4])
        urgent = tx.enqueue("sync", [5], unique="urgent", on_conflict="replace")
    with jobs.transaction(connection) as tx:
        assert tx.enqueue("sync", [6], unique="urgent", on_conflict="replace", priority=0) == urgent
    assert claimed(broker, dsn) == [urgent, other]


def test_of_two_duplicates_in_one_call_the_one_that_replaced_decides_the_time(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    with jobs.transaction(connection) as tx:
        first = tx.enqueue("sync", unique="sync", on_conflict="replace", delay=3600)
    with jobs.transaction(connection) as tx:
        both = [jobs.job("sync", unique="sync", on_conflict="replace"), jobs.job("sync", unique="sync", delay=86_400)]
        assert tx.enqueue_many(both) == [first, first]
    assert claimed(broker, dsn) == [first]


def test_one_that_a_duplicate_puts_off_between_claim_and_start_lets_the_next_of_its_key_go_first(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker, tmp_path: Path
) -> None:
    def enqueue(**options: Any) -> int:
        with jobs.transaction(connection) as tx:
            return tx.enqueue("sync", key="k", on_conflict="replace", **options)

    lanes = [lane(tag(dsn), "default")]
    assert claimed(broker, dsn) == []  # it gives the broker its rules
    first, second = enqueue(unique="first"), enqueue(unique="second")
    [delivery] = broker.claim("worker", lanes, free=2)
    assert enqueue(unique="first", delay=3600) == first
    with psycopg.connect(dsn) as worker:
        verdict = verdict_of(opening.open_job(worker.cursor(), first), careful=False)
    assert isinstance(verdict, Release)
    assert (verdict.reason, verdict.unstarted) == (ReleaseReason.NOT_DUE, True)
    state = WorkerState(WorkerOptions("worker", tuple(lanes), tag(dsn).hex(), tmp_path, children=1))
    books = Bookkeeper(state, lambda: psycopg.connect(dsn, autocommit=True))
    books.found(delivery, Finding(0, verdict, -1)).tell(broker, lanes, delivery)
    assert claimed(broker, dsn) == [second]
