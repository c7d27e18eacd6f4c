"""Redis is emptied, restored, stopped or frozen, and no job is lost or doubled (promises 1, 3 and 5)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from tests.chaos.away import JOBS_PER_SECOND, away
from tests.chaos.programs import Launcher
from tests.chaos.world import LEASE, PATIENCE, World

OPEN_JOBS = 10_000
AWAY = float(os.environ.get("CHAOS_AWAY", "20"))
"""Seconds that Redis is away; ``make chaos`` takes 600 with ``--away``."""
FROZEN = float(os.environ.get("CHAOS_FROZEN", str(3 * LEASE)))
"""Seconds that Redis is frozen; ``make chaos`` takes 60."""


@pytest.fixture
def world(launcher: Launcher) -> Iterator[World]:
    """One worker with one child: what it runs keeps everything else waiting."""
    with World(supervisors=1, children=1, seed="away", launcher=launcher) as world:
        yield world


def test_ten_thousand_pending_jobs_survive_a_redis_that_is_set_back_and_then_emptied(world: World) -> None:
    world.start_workers()
    hold_the_child(world)
    enqueue_many(world, OPEN_JOBS // 2)
    world.wait_until(lambda: references(world) >= OPEN_JOBS // 2, "the first half is published")
    world.redis.stop()
    old, now = world.folder / "old-dump", world.redis.folder
    shutil.copytree(now / "appendonlydir", old)
    world.redis.start()
    enqueue_many(world, OPEN_JOBS // 2)
    world.wait_until(lambda: references(world) >= OPEN_JOBS, "both halves are published")
    world.redis.kill()
    shutil.rmtree(now / "appendonlydir")
    shutil.copytree(old, now / "appendonlydir")
    for path in (now / "appendonlydir", *(now / "appendonlydir").iterdir()):
        world.redis.give(path)
    world.redis.start()
    took = published_again_after(world)
    print(f"{OPEN_JOBS // 2} jobs that the older dump did not know were published again after {took:.2f} s")
    assert took < 10
    world.redis.flushall()
    took = published_again_after(world)
    print(f"{OPEN_JOBS} pending jobs were published again {took:.2f} s after FLUSHALL")
    assert took < 10
    each_ran_once(world)


def test_work_goes_on_while_redis_is_away_and_nothing_runs_twice_after() -> None:
    with World(seed="away") as world:
        found = away(world, AWAY)
    assert found.promised >= (AWAY - 6) * JOBS_PER_SECOND * 0.5, "too little traffic to prove anything"
    assert found.missing == 0, f"{found.missing} of {found.promised} jobs waited for Redis"
    assert not found.verdict.violations, str(found.verdict)


def test_a_frozen_redis_takes_no_live_job_from_its_worker() -> None:
    with World(seed="frozen", children=1) as world:
        world.start_workers()
        for worker in world.workers:
            world.wait_for_children(worker)
        jobs = [world.enqueue("kill.sleep", f"long-{number}", FROZEN + 2 * LEASE) for number in range(2)]
        for _ in jobs:
            world.events.next(PATIENCE, "start")
        world.redis.freeze()
        time.sleep(FROZEN)  # leases in which nobody could renew
        world.redis.thaw()
        ended = [world.events.next(FROZEN + PATIENCE) for _ in jobs]
        assert sorted(words[:2] for words in ended) == [["ended", "long-0"], ["ended", "long-1"]]
        world.wait_for("SELECT bool_and(state = 'done') FROM sidestream_job WHERE id = ANY(%s)", jobs)
        assert world.query("SELECT token, count(*) FROM ledger GROUP BY 1 ORDER BY 1") == [("long-0", 1), ("long-1", 1)]
        assert world.query("SELECT sum(attempts), sum(crashes) FROM sidestream_job") == [(0, 0)]
        assert not world.events.drain(), "a job was started twice"


def hold_the_child(world: World) -> None:
    """Occupy the only child, so that what is enqueued next stays open until :func:`each_ran_once`."""
    world.wait_for_children(world.workers[0])
    world.enqueue("kill.hold", "holder")
    world.events.next(PATIENCE, "start", "holder")


def enqueue_many(world: World, count: int) -> None:
    """Enqueue ``count`` jobs in one transaction."""
    with world.jobs().transaction(world.connection()) as tx:
        [(first,)] = world.connection().execute("SELECT count(*) FROM promised").fetchall()
        tokens = [f"many-{number}" for number in range(first, first + count)]
        ids = tx.enqueue_many([world.jobs().job("chaos.effect", (token, None, {})) for token in tokens])
        with world.connection().cursor() as cursor:
            cursor.executemany(
                "INSERT INTO promised (token, job_id) VALUES (%s, %s)", list(zip(tokens, ids, strict=True))
            )


def published_again_after(world: World) -> float:
    """Wait until Redis holds every pending job and return the seconds that it took."""
    began = time.monotonic()
    world.wait_until(lambda: references(world) >= OPEN_JOBS, "all jobs are published again")
    return time.monotonic() - began


def references(world: World) -> int:
    """Return how many references Redis holds, wherever they wait."""
    client = world.valkey
    waiting = sum(client.zcard(key) for kind in ("flow:r", "delayed:") for key in client.scan_iter(f"*:{kind}*"))
    single = sum(client.hlen(key) for key in client.scan_iter("*:singletons:r*"))
    return int(waiting + single + client.hlen("sidestream:{s0}:leases"))


def each_ran_once(world: World) -> None:
    """Let the child go and wait for the end of all jobs: each has one effect, the one that held it ran undisturbed."""
    (world.folder / "holder").touch()
    world.wait_for("SELECT NOT EXISTS (SELECT FROM sidestream_job WHERE state = 'pending')", patience=2 * PATIENCE)
    assert world.query("SELECT DISTINCT state FROM sidestream_job") == [("done",)]
    missing = "SELECT count(*) FROM promised p WHERE NOT EXISTS (SELECT FROM ledger l WHERE l.token = p.token)"
    assert world.query(missing) == [(0,)]
    assert world.query("SELECT token FROM ledger GROUP BY token HAVING count(*) > 1") == []
    assert [words[1] for words in world.events.drain() if words[0] == "start"] == []
