"""Failures in a real worker: policies by exception class, requested delays, snooze and expiry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sidestream.admin import direct_jobs
from sidestream.broker.redis.failed import FailedDirectJob
from tests.acceptance.rig import Rig, open_folder
from tests.support.servers import PostgresServer, RedisServer


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with open_folder() as folder, PostgresServer(fsync=False) as postgres, RedisServer() as redis_server:
        rig = Rig(folder, postgres.create_database("worker"), redis_server.url)
        rig.start()
        yield rig
        rig.close()


def test_an_exception_s_class_has_a_policy_and_may_say_how_long_to_wait(rig: Rig) -> None:
    job = rig.enqueue("picky", "busy")
    assert rig.ends(job).state == "done"  # after 0.3 s, not after the hour of other failures
    assert rig.effects(job) == ["busy at attempt 2"]


def test_an_error_class_with_give_up_fails_the_job_immediately(rig: Rig) -> None:
    row = rig.ends(rig.enqueue("picky", "key"))
    assert (row.state, row.attempts, row.error) == ("failed", 1, "KeyError: 'key'")


def test_a_snooze_costs_no_attempt_and_undoes_what_was_written(rig: Rig) -> None:
    file = rig.log.parent / "pending"
    job = rig.enqueue("snooze", str(file))
    rig.until(lambda: "released" in rig.events(job))
    file.touch()
    row = rig.ends(job)
    assert (row.state, row.attempts) == ("done", 0)
    assert rig.effects(job) == ["snoozed"]


def test_a_job_that_only_snoozes_fails_with_the_reason(rig: Rig) -> None:
    row = rig.ends(rig.enqueue("snooze.for.ever"))
    assert (row.state, row.attempts) == ("failed", 0)
    assert row.error is not None
    assert row.error.startswith("It snoozed")
    assert row.error.endswith("the last reason: the courier is closed")


def test_a_direct_job_that_only_snoozes_fails_too(rig: Rig) -> None:
    uuid = rig.jobs.enqueue_direct("snooze.for.ever")
    rig.until(lambda: isinstance(direct_jobs.find(rig.settings, uuid), FailedDirectJob))
    found = direct_jobs.find(rig.settings, uuid)
    assert isinstance(found, FailedDirectJob)
    assert found.error == "It snoozed more than 2 times; the last reason: the courier is closed"
    assert (found.attempts, found.job and found.job.action) == (0, "snooze.for.ever")


def test_a_job_that_nobody_needs_any_more_is_cancelled(rig: Rig) -> None:
    job = rig.enqueue("note", "too late", expires_at="2020-01-01 12:00", time_zone="Europe/Brussels")
    row = rig.ends(job)
    assert row.state == "cancelled"
    assert (row.reason or "").startswith('expired|{"expires_at": "2020-01-01 11:00:00')
    assert rig.effects(job) == []


def test_a_direct_job_expires_too(rig: Rig) -> None:
    late = rig.jobs.enqueue_direct("note", ("direct, too late",), expires_at="2020-01-01T12:00Z")
    rig.until(lambda: f"Direct job {late} has expired" in rig.log.read_text())
    assert "direct, too late" not in rig.effects()


def test_declared_texts_are_made_of_the_arguments(rig: Rig) -> None:
    from tests.acceptance.worker_app import actions

    rig.jobs._actions = actions
    try:
        job = rig.enqueue("courier", 5, 7)
    finally:
        rig.jobs._actions = None
    found = rig.look.execute(
        "SELECT key, limit_key, group_name, priority FROM sidestream_job WHERE id = %s", (job,)
    ).fetchone()
    assert found == ("order:5", "courier:7", "g7", 1)
    assert rig.ends(job).state == "done"
