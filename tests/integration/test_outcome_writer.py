"""The cost of a release for its row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from sidestream.broker.protocol import Delivery, Lease, lane
from sidestream.job.job import MAX_RELEASES, Job
from sidestream.job.outcome import Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import direct_reference
from sidestream.job.retry import RetryPolicy
from sidestream.store import schema
from sidestream.store.insert import insert
from sidestream.worker.options import WorkerOptions
from sidestream.worker.outcome_writer import OutcomeWriter
from sidestream.worker.settlement import Settlement
from sidestream.worker.slots import Reading
from sidestream.worker.state import KillReason, WorkerState
from sidestream.worker.wire import JobReport

UPGRADING = Reason(ReasonCode.UPGRADING)


def test_a_pause_of_the_application_costs_nothing_however_long_it_lasts(database: str, tmp_path: Path) -> None:
    """An upgrade may take a night; a job that is released every 2 s would fail after half an hour."""
    with _outcome_writer(database, tmp_path) as (look, outcome_writer, reference):
        for releases in (0, 1, MAX_RELEASES, 10 * MAX_RELEASES):
            delivery = Delivery(reference, "lane", Lease(b"1", "me", 1), 0, None, releases=releases)
            settlement = outcome_writer.reported(delivery, JobReport(0, Release(UPGRADING, 2000), -1))
            assert settlement == Settlement(release=Release(UPGRADING, 2000, count=False))
        outcome_writer.started(delivery, 0, 0.0)
        alone = outcome_writer.reported(delivery, JobReport(0, Release(UPGRADING, 2000), -1))
        assert alone.release.delay_ms == 30_000, "its lone starts are written, so they are fewer"
        row = look.execute("SELECT state, reason, releases, attempts FROM sidestream_job").fetchone()
    assert row == ("pending", "upgrading", 0, 0)


def test_a_crash_counts_among_the_attempts_that_a_job_has(database: str, tmp_path: Path) -> None:
    """Four failed attempts and a crash are five: the job does not run a sixth time."""
    with _outcome_writer(database, tmp_path) as (look, outcome_writer, reference):
        delivery = Delivery(reference, "lane", Lease(b"1", "me", 1), 0)
        for seen in range(4):
            outcome_writer.reported(delivery, JobReport(0, Retry(0.0, "no stock"), seen))
        running = Reading(
            0, running=True, started=1.0, backend=0, attempts_seen=4, limit=1, batch=1, reference=reference
        )
        assert outcome_writer.crashed(delivery, running, 0, None, "killed") == Settlement(settle=True)
        row = look.execute("SELECT state, attempts, crashes, error_group IS NOT NULL FROM sidestream_job").fetchone()
    assert row == ("failed", RetryPolicy().max_attempts, 1, True)


def test_a_hard_limit_counts_only_the_attempts_since_a_person_retried_the_job(database: str, tmp_path: Path) -> None:
    with _outcome_writer(database, tmp_path) as (look, outcome_writer, reference):
        delivery = Delivery(reference, "lane", Lease(b"1", "me", 1), 0)
        look.execute("UPDATE sidestream_job SET attempts = 5, forgiven = 5")
        policy = RetryPolicy()
        for seen in range(5, 5 + policy.max_attempts):
            running = Reading(0, True, 1.0, 0, seen, 1, 1, reference)
            settlement = outcome_writer.crashed(delivery, running, 0, KillReason.LIMIT, "killed")
            if seen == 5:
                assert (settlement.release.delay_ms or 0) <= 1000 * policy.first_delay
                assert look.execute("SELECT state FROM sidestream_job").fetchone() == ("pending",)
        row = look.execute("SELECT state, attempts, forgiven FROM sidestream_job").fetchone()
    assert (row, settlement) == (("failed", 10, 5), Settlement(settle=True))


@contextmanager
def _outcome_writer(database: str, folder: Path) -> Iterator[tuple[psycopg.Connection[Any], OutcomeWriter, bytes]]:
    """Yield a connection to the database, an outcome writer on it, and the reference of a job in it."""
    with psycopg.connect(database, autocommit=True) as look:
        with look.transaction(), look.cursor() as cursor:
            known = schema.install(cursor)
            [stored] = insert(cursor, [Job("test.act")])
        state = WorkerState(WorkerOptions("me", (lane(known.tag, "default"),), folder, children=1))
        outcome_writer = OutcomeWriter(state, lambda: psycopg.connect(database, autocommit=True))
        yield look, outcome_writer, stored.reference(known)
        outcome_writer.close()


@pytest.fixture
def lone(database: str, tmp_path: Path) -> Iterator[Lone]:
    """A job that was written to start alone."""
    with _outcome_writer(database, tmp_path) as (look, outcome_writer, reference):
        delivery = Delivery(reference, "lane", Lease(b"1", "me", 1), 0)
        assert outcome_writer.not_started(delivery) == Settlement()
        outcome_writer.started(delivery, 0, 0.0)
        yield Lone(look, outcome_writer, delivery)


@dataclass
class Lone:
    """A job with a recorded lone start, and the outcome writer that has to record its end."""

    look: psycopg.Connection
    outcome_writer: OutcomeWriter
    delivery: Delivery

    def events(self) -> list[str]:
        """Return the kinds of attempt rows."""
        return [event for (event,) in self.look.execute("SELECT event FROM sidestream_attempt ORDER BY id").fetchall()]


def test_an_unsuccessful_lone_start_is_ended_once(lone: Lone) -> None:
    """The reclaimer charges a job whose last word is that it started alone."""
    for _ in range(2):
        assert lone.outcome_writer.not_started(lone.delivery) == Settlement()
    assert lone.events() == ["started", "released"]


@pytest.mark.parametrize(
    ("kill_reason", "running", "seen"),
    [
        (KillReason.LOST, True, 0),
        (KillReason.STOPPING, True, 0),
        (KillReason.ZYGOTE, True, 0),
        (KillReason.LIMIT, True, -1),
        (None, True, -1),
        (None, False, 0),
    ],
)
def test_a_lone_job_whose_child_died_uncharged_is_ended_in_its_rows(
    lone: Lone, kill_reason: KillReason | None, running: bool, seen: int
) -> None:
    """This worker may run it among others later, and die."""
    reading = Reading(0, running, 1.0, 0, seen, 0, 1, lone.delivery.reference)
    lone.outcome_writer.crashed(lone.delivery, reading, 0, kill_reason, "its process was killed by SIGKILL")
    assert lone.events() == ["started", "released"]
    last = lone.look.execute("SELECT detail FROM sidestream_attempt ORDER BY id DESC LIMIT 1").fetchone()
    assert last is not None
    assert Reason.parse(last[0]).code in (ReasonCode.KILLED, ReasonCode.UNACQUIRED, ReasonCode.UNREPORTED)


def test_a_job_whose_process_was_ended_by_sigterm_has_a_log_line(lone: Lone, caplog: pytest.LogCaptureFixture) -> None:
    reading = Reading(0, True, 1.0, 0, 0, 0, 1, lone.delivery.reference)
    how = "its process was killed by SIGTERM"
    with caplog.at_level("WARNING", "sidestream.jobs"):
        lone.outcome_writer.crashed(lone.delivery, reading, 0, KillReason.TERMINATED, how)
    [line] = [record.message for record in caplog.records if record.name == "sidestream.jobs"]
    assert line.endswith(f": released (attempt 1, queue default): {how}; it returns to the queue")


def test_a_lone_start_says_how_many_attempts_the_job_has(lone: Lone) -> None:
    """Whoever charges the death of the worker may not know the action."""
    (detail,) = lone.look.execute("SELECT detail FROM sidestream_attempt").fetchone() or (None,)
    assert Reason.parse(detail) == Reason(ReasonCode.ALONE, {"max_attempts": RetryPolicy().max_attempts})


def test_a_lost_session_counts_among_the_attempts_of_a_job_that_runs_alone(lone: Lone) -> None:
    most = RetryPolicy().max_attempts
    lone.look.execute("UPDATE sidestream_job SET attempts = %s", [most - 1])
    lost = Release(Reason(ReasonCode.SESSION_LOST, {"sqlstate": "", "error": "gone"}), None)
    assert lone.outcome_writer.reported(lone.delivery, JobReport(0, lost, most - 1)) == Settlement(settle=True)
    assert lone.look.execute("SELECT state, attempts FROM sidestream_job").fetchone() == ("failed", most)


def test_a_crash_counts_among_the_attempts_of_a_direct_job(tmp_path: Path) -> None:
    outcome_writer = OutcomeWriter(WorkerState(WorkerOptions("me", ("lane",), tmp_path, children=1)), None)
    reference = direct_reference(UUID(int=1), "test.act", None).pack()
    running = Reading(0, True, 1.0, 0, 0, 1, 1, reference)
    most = RetryPolicy().max_attempts
    last, earlier = (
        Delivery(reference, "lane", Lease(b"1", "me", 1), 0, attempts=attempts) for attempts in (most - 1, most - 2)
    )
    assert outcome_writer.crashed(earlier, running, 0, None, "killed").release.charge_crash
    assert outcome_writer.crashed(last, running, 0, None, "killed").fail == "It crashed: killed."


def test_a_failure_ends_a_lone_start(lone: Lone) -> None:
    lone.outcome_writer.reported(lone.delivery, JobReport(0, Retry(0.0, "no stock"), 0))
    lone.outcome_writer.reported(lone.delivery, JobReport(0, Release(Reason(ReasonCode.LOCKED)), -1))
    assert lone.events() == ["started", "failed"]


def test_a_direct_job_that_snoozes_with_the_reason_paused_is_counted(tmp_path: Path) -> None:
    outcome_writer = OutcomeWriter(WorkerState(WorkerOptions("me", ("lane",), tmp_path, children=1)), None)
    reference = direct_reference(UUID(int=1), "test.act", None).pack()
    for word in (ReasonCode.UPGRADING, ReasonCode.UNROUTED):
        snooze = Release(Reason(ReasonCode.SNOOZED, {"seconds": 60, "message": word.value}), 60_000)
        settlement = outcome_writer.reported(
            Delivery(reference, "lane", Lease(b"1", "me", 1), 0), JobReport(0, snooze, -1)
        )
        assert settlement == Settlement(release=snooze)


def test_a_job_whose_child_died_of_sigterm_is_released_and_charged_with_nothing(lone: Lone) -> None:
    reading = Reading(0, True, 1.0, 0, 0, 0, 1, lone.delivery.reference)
    settlement = lone.outcome_writer.crashed(
        lone.delivery, reading, 0, KillReason.TERMINATED, "its process was killed by SIGTERM"
    )
    assert settlement == Settlement(release=Release(Reason(ReasonCode.KILLED, {"by": "SIGTERM"}), None))
    assert lone.events() == ["started", "released"]
    assert lone.look.execute("SELECT attempts, crashes FROM sidestream_job").fetchone() == (0, 0)
