"""Leases, counts and order, seen from outside; these tests detect mutants of ``make mutants``."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.chaos import processes
from tests.chaos.programs import Launcher
from tests.chaos.world import PATIENCE, World


@pytest.fixture
def world(launcher: Launcher) -> Iterator[World]:
    """Two workers of one child each; a test starts those that it wants."""
    with World(seed="leases", children=1, launcher=launcher) as world:
        yield world


def test_a_direct_job_of_a_killed_child_is_not_lost(world: World) -> None:
    world.start_workers()
    world.jobs().enqueue_direct("kill.sql", ("direct",))
    _, _, pid, *_ = world.events.next(PATIENCE, "start", "direct")
    processes.kill(int(pid))
    _, _, _, _, attempt = world.events.next(PATIENCE / 3, "start", "direct")
    assert int(attempt) == 2
    world.wait_for("SELECT count(*) = 1 FROM ledger WHERE token = 'direct'")


def test_a_late_failure_does_not_make_a_done_job_pending(world: World) -> None:
    """A worker stands still before it writes a failure; another one finishes the job; then it goes on."""
    late, other = world.workers
    late.extra["SIDESTREAM_CRASH_AT"] = "settle.before_store:1"
    late.start()
    job_id = world.enqueue("chaos.effect", "late", None, {"fail": True})
    hit = world.harness.next_hit(PATIENCE)
    assert hit is not None
    other.start()
    world.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", job_id)
    other.kill()
    processes.resume(hit.pid)
    after = world.enqueue("chaos.effect", "after", None, {})
    world.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", after)
    assert world.query("SELECT state FROM sidestream_job WHERE id = %s", job_id) == [("done",)]
    assert world.query("SELECT count(*) FROM ledger WHERE token = 'late'") == [(1,)]


def test_a_smaller_id_that_commits_later_is_published_too(world: World) -> None:
    """Ids are drawn in one order and committed in another: no watermark can stand between them."""
    world.workers[0].start()
    with psycopg.connect(world.dsn) as slow:
        smaller = world.jobs().enqueue("chaos.effect", ("smaller", None, {}), connection=slow)
        larger = world.jobs().enqueue("chaos.effect", ("larger", None, {}), connection=world.connection())
        world.connection().commit()
        world.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", larger)
        slow.commit()
    assert smaller < larger
    world.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", smaller, patience=20)


def test_an_emptied_redis_forgets_no_crash(world: World) -> None:
    """A job that kills its process runs three times, also when Redis is emptied each time."""
    world.start_workers()
    poison = world.enqueue("kill.own", "poison")
    for _ in range(3):
        world.events.next(PATIENCE / 3, "start", "poison")
        world.redis.flushall()
    world.wait_for("SELECT state <> 'pending' FROM sidestream_job WHERE id = %s", poison, patience=20)
    assert world.query("SELECT state, crashes FROM sidestream_job WHERE id = %s", poison) == [("failed", 3)]
    assert not world.events.drain(), "it ran a fourth time"


def test_a_job_longer_than_its_lease_stays_with_its_worker(world: World) -> None:
    """A direct job without a database: no lock stands behind the lease."""
    lease = 6.0  # a busy machine may hold up a renewal for longer than the others' lease
    for worker in world.workers:
        worker.extra["SIDESTREAM_LEASE"] = str(lease)
    world.start_workers()
    for worker in world.workers:
        world.wait_for_children(worker)
    world.jobs().enqueue_direct("kill.outside", ("long", 2.5 * lease))
    _, _, pid, *_ = world.events.next(PATIENCE, "start", "long")
    assert world.events.next(PATIENCE)[:3] == ["ended", "long", pid]
    world.wait_until(lambda: not world.valkey.hlen("sidestream:{s0}:leases"), "its delivery is settled")
    assert not world.events.drain(), "it was started twice"
