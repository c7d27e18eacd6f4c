"""A duplicate that replaces: what it changes of the job that waits reaches Redis with its commit."""

from __future__ import annotations

from typing import Any

from sidestream import Jobs
from sidestream.broker.protocol import Broker
from tests.integration.test_client import claimed


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
