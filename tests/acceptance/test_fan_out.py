"""A job that enqueues very many jobs completes, and does not disturb other jobs."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import redis

from tests.acceptance.rig import Rig

UNSERVED = "q" * 63
"""A queue whose jobs nobody runs; its name makes each follow-up job twice as large."""
ENQUEUED = 40_000
"""Follow-up jobs that are published but not run: what they cost is their report, not their attempts."""
FOLLOW_UPS = int(os.environ.get("CHAOS_FOLLOW_UPS", "10000"))
"""Follow-up jobs that are run: more than any one packet holds; ``make chaos`` runs 100,000 of them."""
LOOK_EVERY = 0.2
"""Seconds between two counts of the jobs: each reads all of them."""
MANY_ACTIONS = """
from sidestream import Actions

actions = Actions()


def work(context):
    context.cursor.execute("INSERT INTO effect (job_id, what) VALUES (%s, %s)", (context.job_id, context.action))


for number in range(1400):
    actions.action(f"{'some.model.' * 9}{number}.method")(work)
"""


def fan_out(rig: Rig, jobs: int, queue: str, seconds: float) -> None:
    """Let one job enqueue ``jobs`` others in ``queue``, beside a job that runs and jobs that come later."""
    finish = rig.folder / "finish"
    bystander = rig.enqueue("until", str(finish))
    until(rig, lambda: rig.events(bystander) == ["started"], 20)
    try:
        parent = rig.enqueue("fan.out", jobs, queue)
        until(rig, lambda: rig.job(parent).state == "done", seconds)
        beside = [rig.enqueue("note", "beside") for _ in range(20)]
        until(rig, lambda: all(rig.job(one).state == "done" for one in beside), seconds)
        if queue != UNSERVED:
            until(rig, lambda: counted(rig) == (jobs, jobs), seconds)
        else:
            until(rig, lambda: published(rig) == jobs + 1, seconds)  # and the bystander
        assert counted(rig)[1] == jobs
    finally:
        finish.touch()
    assert rig.ends(bystander).attempts == 0
    assert rig.events(bystander) == ["started"], "the bystander was disturbed"
    assert rig.effects(bystander) == ["waited"]
    assert rig.look.execute("SELECT count(*) FROM sidestream_attempt WHERE event = 'crashed'").fetchone() == (0,)
    assert "zygote ended" not in rig.log.read_text()


def until(rig: Rig, seen: Callable[[], object], seconds: float) -> None:
    """Wait for ``seen``, and fail at once when the worker ends or complains."""
    with rig.log.open() as log:
        said = ""

        def seen_calmly() -> object:
            nonlocal said
            said = said[-4000:] + log.read()
            assert rig.workers[0].poll() is None, said
            assert " ERROR " not in said, said
            return seen()

        rig.until(seen_calmly, seconds, every=LOOK_EVERY)


def counted(rig: Rig) -> tuple[int, int]:
    """Return how many follow-up jobs are done, and how many there are."""
    found = rig.look.execute(
        "SELECT count(*) FILTER (WHERE state = 'done'), count(*) FROM sidestream_job WHERE action = 'nothing'"
    ).fetchone()
    assert found is not None
    done, there = found
    return done, there


def published(rig: Rig) -> int:
    """Return of how many jobs Redis holds the reference."""
    with redis.Redis.from_url(str(rig.settings.redis_url)) as client:
        return sum(client.bitcount(key) for key in client.scan_iter("*:published:*"))


@pytest.mark.timeout(400)
def test_a_fan_out_job_leaves_bystanders_alone(rig: Rig) -> None:
    rig.start(SIDESTREAM_QUIET_JOBS="true")
    fan_out(rig, ENQUEUED, UNSERVED, seconds=100)


@pytest.mark.timeout(900)
def test_a_great_many_follow_up_jobs_of_one_job_are_all_done(rig: Rig) -> None:
    rig.start(SIDESTREAM_QUIET_JOBS="true")
    fan_out(rig, FOLLOW_UPS, "default", seconds=800)


def test_a_message_that_nobody_can_read_ends_its_own_child_only(rig: Rig) -> None:
    rig.start()
    finish = rig.folder / "finish"
    bystander = rig.enqueue("until", str(finish))
    rig.until(lambda: rig.events(bystander) == ["started"])
    garbler = rig.ends(rig.enqueue("garble"), 60)
    finish.touch()
    assert (garbler.state, garbler.crashes) == ("failed", 3)
    assert garbler.error == "It crashed: its process sent a message that cannot be read."
    assert rig.ends(bystander).state == "done"
    assert rig.events(bystander) == ["started"], "the bystander was disturbed"
    assert rig.workers[0].poll() is None


def test_a_worker_serves_as_many_actions_as_a_mixin_gives_to_all_models(rig: Rig) -> None:
    (rig.folder / "many_actions.py").write_text(MANY_ACTIONS)
    rig.start(SIDESTREAM_APP="many_actions:actions", PYTHONPATH=str(rig.folder))
    name = f"{'some.model.' * 9}1399.method"
    assert rig.ends(rig.enqueue(name)).state == "done"
    assert rig.effects() == [name]
