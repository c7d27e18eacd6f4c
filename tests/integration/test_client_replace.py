"""A duplicate that replaces: what it changes of the job that waits reaches Redis with its commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from sidestream import Actions, Jobs
from sidestream.broker.protocol import Broker, Delivery, Place, Publication, lane
from sidestream.executors.acquire import verdict_of
from sidestream.executors.python.executor import PythonExecutor
from sidestream.job.outcome import Release
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.store import acquire, outcomes
from sidestream.worker.options import WorkerOptions
from sidestream.worker.outcome_writer import OutcomeWriter
from sidestream.worker.state import WorkerState
from sidestream.worker.wire import JobReport
from tests.integration.test_client import claimed, tag
from tests.support.embedded_worker import EmbeddedWorker


def test_a_replaced_job_is_superseded_immediately(connection: Any, jobs: Jobs, dsn: str, broker: Broker) -> None:
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


def test_a_job_postponed_by_a_duplicate_between_claim_and_start_lets_the_next_of_its_key_go_first(
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
        found = acquire.acquire_job(worker.cursor(), first)
    verdict = verdict_of(found, Reference.unpack(delivery.reference), run_alone=False)
    assert isinstance(verdict, Release)
    assert (verdict.reason, verdict.unstarted) == (Reason(ReasonCode.NOT_DUE), True)
    state = WorkerState(WorkerOptions("worker", tuple(lanes), tmp_path, children=1))
    outcome_writer = OutcomeWriter(state, lambda: psycopg.connect(dsn, autocommit=True))
    outcome_writer.reported(delivery, JobReport(0, verdict, -1)).apply(broker, delivery)
    assert claimed(broker, dsn) == [second]


def failing(broker: Broker, dsn: str) -> Delivery:
    """Claim the one job that is there, and write its failure; it is due again in an hour."""
    assert claimed(broker, dsn, "nothing") == []  # it gives the broker its rules
    [delivery] = broker.claim("worker", [lane(tag(dsn), "default")], free=1)
    with psycopg.connect(dsn) as worker:
        assert outcomes.fail_attempt(worker.cursor(), Reference.unpack(delivery.reference).id, 0, 3600.0, "no").applied
    return delivery


def give_back(broker: Broker, delivery: Delivery) -> None:
    """Tell the broker of the failure."""
    assert broker.release(delivery, Release(delay_ms=3_600_000, charge_attempt=True)) == 0


def test_the_newest_does_not_wait_for_the_retry_of_the_one_that_it_replaced(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker
) -> None:
    def enqueue(**options: Any) -> int:
        with jobs.transaction(connection) as tx:
            return tx.enqueue("sync", unique="sync", **options)

    first = enqueue(on_conflict="newest")
    delivery = failing(broker, dsn)
    give_back(broker, delivery)
    second = enqueue(on_conflict="newest")
    assert second > first
    assert broker.locate([Publication(delivery.reference, delivery.lane)]) == [Place.NOWHERE]
    delivery = failing(broker, dsn)
    give_back(broker, delivery)
    third = enqueue(on_conflict="replace", queue="other")
    assert third > second, "of another queue, so it cannot take over"
    assert claimed(broker, dsn, "default", "other") == [third]


def test_a_job_that_an_action_replaces_does_not_block_its_key(
    connection: Any, jobs: Jobs, dsn: str, broker: Broker, tmp_path: Path
) -> None:
    actions, ran = Actions(), []

    @actions.action("sync")
    def sync(context: object, number: int) -> None:
        ran.append(number)

    @actions.action("plan")
    def plan(context: Any) -> None:
        context.enqueue("sync", (2,), unique="sync", on_conflict="newest")

    with jobs.transaction(connection) as tx:
        tx.enqueue("sync", (1,), unique="sync", on_conflict="newest")
    give_back(broker, failing(broker, dsn))
    with jobs.transaction(connection) as tx:
        tx.enqueue("plan")
    call = PythonExecutor(actions, dsn=dsn, signer=None, application_name=lambda slot: f"test/{slot}")
    options = WorkerOptions("worker", (lane(tag(dsn), "default"),), tmp_path)
    worker = EmbeddedWorker(broker, call, options, lambda: psycopg.connect(dsn, autocommit=True))
    worker.run_until_idle()
    worker.close()
    assert ran == [2]
