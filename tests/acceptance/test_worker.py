"""The real ``sidestream worker run``: limits, commits, steps, cancellation, drain."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from sidestream.store import control
from tests.acceptance.rig import COMMAND, ROOT, Rig, open_folder
from tests.support.servers import PostgresServer, RedisServer

TAKEN = """
    SELECT NOT EXISTS (SELECT 1 FROM (SELECT FROM sidestream_job WHERE id = %s FOR UPDATE SKIP LOCKED) free)"""
SOMEBODY_WAITS = """
    SELECT count(*) FROM pg_stat_activity WHERE application_name = 'somebody' AND wait_event_type = 'Lock'"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """One rig with one worker for all tests that do not harm it."""
    with open_folder() as folder, PostgresServer(fsync=False) as postgres, RedisServer() as redis_server:
        rig = Rig(folder, postgres.create_database("worker"), redis_server.url)
        rig.start()
        yield rig
        rig.close()


def test_a_job_is_done_with_its_effect(shared: Rig) -> None:
    job = shared.enqueue("note", "hello")
    assert shared.ends(job).state == "done"
    assert shared.effects(job) == ["hello"]


def test_children_use_only_an_idle_processor(rig: Rig) -> None:
    worker = rig.start(SIDESTREAM_NICE="3", SIDESTREAM_IDLE_CPU_ONLY="true")
    assert rig.ends(rig.enqueue("note", "hello"), 90).state == "done"  # others may want the processor for long
    [zygote] = [one for one in psutil.Process(worker.pid).children() if one.children()]
    children = zygote.children()
    assert children
    assert {(os.sched_getscheduler(one.pid), one.nice()) for one in children} == {(os.SCHED_IDLE, 3)}
    assert os.sched_getscheduler(worker.pid) == os.SCHED_OTHER
    assert {os.getsid(one.pid) for one in children} == {zygote.pid}, "the session is the zygote's"
    group = Path(f"/proc/{zygote.pid}/autogroup")
    if group.exists():  # a kernel that shares processors out by session
        assert group.read_text().split()[-1] == "19"


def test_a_failing_job_is_retried_and_then_failed_with_its_error(shared: Rig) -> None:
    job = shared.enqueue("fail")
    row = shared.ends(job)
    assert (row.state, row.attempts, row.error) == ("failed", 2, "ValueError: no stock")
    assert shared.effects(job) == []
    # A failed attempt that took longer than usual has a row of its start, too.
    assert [event for event in shared.events(job) if event != "started"] == ["failed", "failed"]


def test_the_soft_limit_is_an_error_of_the_job(shared: Rig) -> None:
    row = shared.ends(shared.enqueue("soft"))
    assert (row.state, row.error) == ("failed", "It ran longer than its soft limit of 0.2 s.")


def test_the_hard_limit_kills_the_job_and_what_it_started(shared: Rig) -> None:
    file = shared.log.parent / "pid"
    job = shared.enqueue("hard", str(file))
    row = shared.ends(job)
    assert row.state == "failed"
    assert row.crashes == 0
    assert row.error is not None
    assert "longer than its hard limit of 3 s" in row.error
    assert "timeout" in shared.events(job)
    started = int(file.read_text())
    shared.until(lambda: not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("action", "says"),
    [("commits", "tried to commit the transaction of its job"), ("commits.sql", "cannot be finished")],
)
def test_an_action_that_commits_by_itself_is_refused(shared: Rig, action: str, says: str) -> None:
    job = shared.enqueue(action)
    shared.until(lambda: (shared.job(job).error or "").find(says) >= 0 or says in (shared.job(job).reason or ""))
    assert shared.effects(job) == []
    with shared.look.cursor() as cursor:
        shared.until(lambda: control.cancel(cursor, job).applied)


def test_relock_commits_part_by_part(shared: Rig) -> None:
    job = shared.enqueue("relock", key="relock")
    assert shared.ends(job).state == "done"
    assert shared.effects(job) == ["part 0", "part 1", "part 2", "end"]


def test_a_job_lost_after_a_part_is_not_written_even_if_the_action_swallows_the_error(
    shared: Rig,
) -> None:
    """Somebody changes the row as soon as the first part's commit frees it."""
    file = shared.log.with_name("go-on")
    job = shared.enqueue("relock.heedless", str(file))
    shared.until(lambda: shared.look.execute(TAKEN, (job,)).fetchone() == (True,))
    # A waiter for the table's lock is granted it by the commit itself; one for the row's could come after the relock.
    change = (
        f"LOCK sidestream_job IN EXCLUSIVE MODE; UPDATE sidestream_job SET attempts = attempts + 1 WHERE id = {job}"
    )
    with psycopg.connect(shared.dsn, autocommit=True, application_name="somebody") as other:
        waiting = threading.Thread(target=other.execute, args=(change,))
        waiting.start()
        shared.until(lambda: shared.look.execute(SOMEBODY_WAITS).fetchone() == (1,))
        file.touch()
        waiting.join()
    assert shared.ends(job).state == "done"
    found = shared.look.execute("SELECT attempt, what FROM effect WHERE job_id = %s", (job,)).fetchall()
    assert sorted(found) == [(1, "first"), (2, "first"), (2, "later 0"), (2, "later 1")]


def test_three_steps_with_the_same_idempotency_key(shared: Rig) -> None:
    job = shared.enqueue("ship", 5)
    assert shared.ends(job).state == "done"
    assert shared.effects(job) == ["ship T5"]


def test_a_follow_up_exists_only_if_its_parent_is_done(shared: Rig) -> None:
    parent, failing = shared.enqueue("parent"), shared.enqueue("parent.fails")
    assert shared.ends(parent).state == "done"
    assert shared.ends(failing).state == "failed"
    shared.until(lambda: "from the parent" in shared.effects())
    assert "a ghost" not in shared.effects()


def test_a_job_that_kills_its_process_runs_three_times(shared: Rig) -> None:
    job = shared.enqueue("die")
    row = shared.ends(job)
    assert (row.state, row.crashes, row.attempts) == ("failed", 3, 3)
    assert row.error == "It crashed: its process ended with exit code 7."


def test_a_cursor_in_a_failed_transaction_fails_the_attempt(shared: Rig) -> None:
    row = shared.ends(shared.enqueue("broken.cursor"))
    assert row.state == "failed"
    assert row.error is not None
    assert row.error.startswith("InFailedSqlTransaction")


def test_a_running_job_is_cancelled(shared: Rig) -> None:
    job = shared.enqueue("wait", 60)
    shared.until(lambda: "started" in shared.events(job))
    with shared.look.cursor() as cursor:
        asked = control.cancel(cursor, job)
    assert asked.locked
    assert shared.ends(job, 10).state == "cancelled"
    assert shared.effects(job) == []


def test_a_delayed_job_waits_for_its_time(shared: Rig) -> None:
    began = time.monotonic()
    job = shared.enqueue("note", "later", delay=1.2)
    assert shared.ends(job).state == "done"
    assert time.monotonic() - began > 0.2 + 0.9  # up to a second early counts as due


def test_a_direct_job_with_a_database_leaves_its_row_with_the_effect(shared: Rig) -> None:
    uuid = shared.jobs.enqueue_direct("note", ("direct",))
    again = shared.jobs.enqueue_direct("note", ("direct",), id=uuid)
    assert again == uuid
    query = "SELECT state FROM sidestream_job WHERE uuid = %s"
    shared.until(lambda: shared.look.execute(query, (uuid,)).fetchone() == ("done",))
    assert shared.effects().count("direct") == 1


def test_sigterm_lets_running_jobs_end(rig: Rig) -> None:
    worker = rig.start()
    file = rig.log.parent / "go on"
    job = rig.enqueue("until", str(file))
    rig.until(lambda: "started" in rig.events(job))
    worker.send_signal(signal.SIGTERM)
    rig.until(lambda: b"Draining" in rig.log.read_bytes())
    file.touch()
    assert worker.wait(20) == 0, rig.log.read_text()
    assert rig.job(job).state == "done"
    assert rig.job(job).attempts == 0


def test_a_second_sigterm_releases_running_jobs(rig: Rig) -> None:
    worker = rig.start()
    file = rig.log.parent / "go on"
    job = rig.enqueue("until", str(file))
    rig.until(lambda: "started" in rig.events(job))
    worker.send_signal(signal.SIGTERM)
    rig.until(lambda: b"Draining" in rig.log.read_bytes())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, rig.log.read_text()
    row = rig.job(job)
    assert (row.state, row.attempts, row.crashes) == ("pending", 0, 0)
    file.touch()
    rig.start()
    assert rig.ends(job).state == "done"


def test_a_job_that_waits_to_run_alone_is_released_at_the_stop(rig: Rig, redis_server: RedisServer) -> None:
    worker = rig.start()
    with psycopg.connect(rig.dsn) as other:
        other.execute("LOCK TABLE sidestream_attempt IN SHARE MODE")  # its attempt row is not written for now
        with rig.jobs.transaction(rig.connection) as transaction:
            job = transaction.enqueue("note", ("never",))
            rig.connection.execute("UPDATE sidestream_job SET suspects = 2 WHERE id = %s", (job,))
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO %attempt%'"
        rig.until(lambda: rig.look.execute(waits).fetchone())
        children = [one for zygote in psutil.Process(worker.pid).children() for one in zygote.children()]
        assert children
        worker.send_signal(signal.SIGTERM)
        psutil.wait_procs(children, 20)
        assert not any(one.is_running() for one in children)
        time.sleep(1.5)  # until this row is all that the worker waits for, at most 5 s
    assert worker.wait(20) == 0, rig.log.read_text()
    with redis.Redis.from_url(redis_server.url) as client:
        assert [client.hlen(key) for key in client.scan_iter("*:leases")] == []
    assert rig.events(job) == ["started", "released"]
    assert rig.effects() == []
    rig.start()
    assert rig.ends(job).state == "done"
    row = rig.job(job)
    assert (row.attempts, row.crashes) == (0, 0)


def test_without_redis_rows_are_processed_from_postgresql(rig: Rig, redis_server: RedisServer) -> None:
    worker = rig.start()
    redis_server.stop()
    jobs = [rig.enqueue("note", str(number), key="line") for number in range(20)]
    for job in jobs:
        assert rig.ends(job).state == "done"
    assert rig.effects() == [str(number) for number in range(20)]
    worker.terminate()
    assert worker.wait(30) == 0, rig.log.read_text()
    [folder] = (rig.settings.data_dir / "run").iterdir()
    assert [file.name for file in folder.iterdir()] == ["lock"], "leases may be left, but nothing of them runs"


def test_a_job_from_redis_that_fails_while_redis_is_away_is_retried_meanwhile(
    rig: Rig, redis_server: RedisServer
) -> None:
    rig.start()
    file = rig.log.parent / "go on"
    failing, behind = rig.enqueue("until.fails.once", str(file), key="line"), rig.enqueue("note", "behind", key="line")
    rig.until(lambda: "started" in rig.events(failing))
    redis_server.stop()
    file.touch()
    assert rig.ends(behind).state == "done"
    assert rig.effects() == ["second attempt", "behind"]
    assert rig.job(failing).attempts == 1
    other = rig.enqueue("fail")
    assert rig.ends(other).state == "failed"
    assert [event for event in rig.events(other) if event != "started"] == ["failed", "failed"]
    redis_server.start()
    rig.until(lambda: b"The broker is back" in rig.log.read_bytes())
    assert rig.ends(rig.enqueue("note", "last")).state == "done"
    assert len(rig.effects()) == 3


@pytest.mark.parametrize(
    ("variables", "code", "says"),
    [
        ({"SIDESTREAM_APP": "tests.acceptance.nothing:actions"}, 2, "cannot be imported"),
        ({"SIDESTREAM_APP": "no-colon"}, 2, "module:attribute"),
        ({"SIDESTREAM_CHILDREN": "0"}, 2, "children"),
        ({"SIDESTREAM_QUEUES": "odd queue!"}, 2, "queue"),
        ({"SIDESTREAM_NONSENSE": "1"}, 2, "SIDESTREAM_NONSENSE"),
    ],
)
def test_a_worker_that_cannot_work_says_why_in_one_sentence(
    rig: Rig, variables: dict[str, str], code: int, says: str
) -> None:
    ended = subprocess.run(
        [COMMAND, "worker", "run"],
        cwd=ROOT,
        env={**rig.variables, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
