"""The real ``sidestream worker``, one behaviour a test: limits, commits, steps, cancel, drain, parked jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from sidestream import Jobs, Settings
from sidestream.store import control, queries, schema
from sidestream.testing.servers import PostgresServer, RedisServer

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("sidestream")


class Rig:
    """A database, a Redis, a client, and workers started as an operator would."""

    def __init__(self, folder: Path, dsn: str, redis_url: str) -> None:
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SIDESTREAM_")},
            "SIDESTREAM_DATABASE_URL": dsn,
            "SIDESTREAM_REDIS_URL": redis_url,
            "SIDESTREAM_APP": "tests.acceptance.worker_app:actions",
            "SIDESTREAM_DATA_DIR": str(folder / "data"),
            "SIDESTREAM_SIGNING_KEYS": f"k1:{'s' * 32}",
            "SIDESTREAM_LEASE": "2",
            "SIDESTREAM_RENEW": "0.5",
            "SIDESTREAM_CAREFUL_SECONDS": "0",
        }
        self.dsn = dsn
        self.log = folder / "worker.log"
        self.settings = Settings(
            database_url=dsn, redis_url=redis_url, data_dir=folder / "data", signing_keys=f"k1:{'s' * 32}"
        )
        self.look = psycopg.connect(dsn, autocommit=True)
        with self.look.transaction(), self.look.cursor() as cursor:
            schema.install(cursor)
            cursor.execute("CREATE TABLE effect (job_id bigint, uuid uuid, attempt int, pid int, what text)")
        self.connection = psycopg.connect(dsn)
        self.jobs = Jobs(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it serves."""
        seen = self.log.read_bytes().count(b" serves ") if self.log.exists() else 0
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [COMMAND, "worker"], cwd=ROOT, env={**self.variables, **variables}, stderr=log, stdout=log
            )
        self.workers.append(worker)
        self.until(lambda: self.log.read_bytes().count(b" serves ") > seen or worker.poll() is not None)
        assert worker.poll() is None, self.log.read_text()
        return worker

    def enqueue(self, action: str, *args: Any, **options: Any) -> int:
        """Enqueue in a transaction of its own; return the id."""
        with self.jobs.transaction(self.connection) as transaction:
            return transaction.enqueue(action, args, **options)

    def job(self, job_id: int) -> queries.Row:
        """Return the row."""
        with self.look.cursor() as cursor:
            found = queries.job(cursor, job_id)
        assert found is not None
        return found[0]

    def events(self, job_id: int) -> list[str]:
        """Return the kinds of attempt rows of the job."""
        found = self.look.execute("SELECT event FROM sidestream_attempt WHERE job_id = %s ORDER BY id", (job_id,))
        return [event for (event,) in found]

    def effects(self, job_id: int | None = None) -> list[str]:
        """Return what actions committed."""
        found = self.look.execute("SELECT what FROM effect WHERE %s::bigint IS NULL OR job_id = %s", (job_id, job_id))
        return [what for (what,) in found]

    def ends(self, job_id: int, seconds: float = 20) -> queries.Row:
        """Wait until the job is over."""
        self.until(lambda: self.job(job_id).state != "open", seconds)
        return self.job(job_id)

    def until(self, seen: Callable[[], object], seconds: float = 20) -> None:
        """Wait for ``seen``; fail with the worker's log when it never comes."""
        deadline = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > deadline:
                log = self.log.read_text() if self.log.exists() else ""
                pytest.fail(f"Waited {seconds} s in vain. The worker said:\n{log[-4000:]}")
            time.sleep(0.01)

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait(20)
        self.connection.close()
        self.look.close()


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that the worker's unprivileged user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="sidestream-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """One rig with one worker for all tests that do not harm it."""
    with open_folder() as folder, PostgresServer(fsync=False) as postgres, RedisServer() as redis_server:
        rig = Rig(folder, postgres.create_database("worker"), redis_server.url)
        rig.start()
        yield rig
        rig.close()


@pytest.fixture
def rig(database: str, redis_server: RedisServer) -> Iterator[Rig]:
    """A rig without a worker, for tests that start and end them."""
    with open_folder() as folder:
        rig = Rig(folder, database, redis_server.url)
        yield rig
        rig.close()


def test_a_job_is_done_with_its_effect(shared: Rig) -> None:
    job = shared.enqueue("note", "hello")
    assert shared.ends(job).state == "done"
    assert shared.effects(job) == ["hello"]


def test_a_failing_job_is_retried_and_then_dead_with_its_error(shared: Rig) -> None:
    job = shared.enqueue("fail")
    row = shared.ends(job)
    assert (row.state, row.attempts, row.error) == ("dead", 2, "ValueError: no stock")
    assert shared.effects(job) == []
    assert shared.events(job) == ["failed", "failed"]


def test_the_soft_limit_is_an_error_of_the_job(shared: Rig) -> None:
    row = shared.ends(shared.enqueue("soft"))
    assert (row.state, row.error) == ("dead", "It ran longer than its soft limit of 0.2 s.")


def test_the_hard_limit_kills_the_job_and_what_it_started(shared: Rig) -> None:
    file = shared.log.parent / "pid"
    job = shared.enqueue("hard", str(file))
    row = shared.ends(job)
    assert row.state == "dead"
    assert row.crashes == 0
    assert row.error is not None
    assert "longer than its hard limit of 0.5 s" in row.error
    assert "timeout" in shared.events(job)
    started = int(file.read_text())
    shared.until(lambda: not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("action", "says"), [("commits", "tried to commit its job's transaction"), ("commits.sql", "cannot be finished")]
)
def test_an_action_that_commits_by_itself_is_refused(shared: Rig, action: str, says: str) -> None:
    job = shared.enqueue(action)
    shared.until(lambda: (shared.job(job).error or "").find(says) >= 0 or says in (shared.job(job).reason or ""))
    assert shared.effects(job) == []
    with shared.look.cursor() as cursor:
        shared.until(lambda: control.cancel(cursor, job).ours)


def test_relock_commits_part_by_part(shared: Rig) -> None:
    job = shared.enqueue("relock", key="relock")
    assert shared.ends(job).state == "done"
    assert shared.effects(job) == ["part 0", "part 1", "part 2", "end"]


def test_three_steps_with_the_same_idempotency_key(shared: Rig) -> None:
    job = shared.enqueue("ship", 5)
    assert shared.ends(job).state == "done"
    assert shared.effects(job) == ["ship T5"]


def test_a_follow_up_exists_only_if_its_parent_is_done(shared: Rig) -> None:
    parent, failing = shared.enqueue("parent"), shared.enqueue("parent.fails")
    assert shared.ends(parent).state == "done"
    assert shared.ends(failing).state == "dead"
    shared.until(lambda: "from the parent" in shared.effects())
    assert "a ghost" not in shared.effects()


def test_a_job_that_kills_its_process_runs_three_times(shared: Rig) -> None:
    job = shared.enqueue("die")
    row = shared.ends(job)
    assert (row.state, row.crashes, row.attempts) == ("dead", 3, 3)
    assert row.error == "It crashed: its process ended with exit code 7."


def test_a_cursor_left_broken_is_a_failure(shared: Rig) -> None:
    row = shared.ends(shared.enqueue("broken.cursor"))
    assert row.state == "dead"
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


def test_an_unknown_action_is_parked_with_the_reason_and_not_lost(shared: Rig) -> None:
    job = shared.enqueue("nobody.knows.me")
    shared.until(lambda: shared.job(job).reason)
    row = shared.job(job)
    assert row.state == "open"
    assert row.reason == "parked: no worker here knows its action"
    assert row.attempts == 0
    with shared.look.cursor() as cursor:
        shared.until(lambda: control.cancel(cursor, job).ours)


def test_a_delayed_job_waits_for_its_time(shared: Rig) -> None:
    began = time.monotonic()
    job = shared.enqueue("note", "later", delay=1.2)
    assert shared.ends(job).state == "done"
    assert time.monotonic() - began > 0.2 + 0.9  # up to a second early counts as due (design D2)


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


def test_a_second_sigterm_hands_back_what_runs(rig: Rig) -> None:
    worker = rig.start()
    file = rig.log.parent / "go on"
    job = rig.enqueue("until", str(file))
    rig.until(lambda: "started" in rig.events(job))
    worker.send_signal(signal.SIGTERM)
    rig.until(lambda: b"Draining" in rig.log.read_bytes())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0, rig.log.read_text()
    row = rig.job(job)
    assert (row.state, row.attempts, row.crashes) == ("open", 0, 0)
    file.touch()
    rig.start()
    assert rig.ends(job).state == "done"


def test_without_redis_the_rows_are_worked_off_all_the_same(rig: Rig, redis_server: RedisServer) -> None:
    rig.start()
    redis_server.stop()
    jobs = [rig.enqueue("note", str(number), key="line") for number in range(20)]
    for job in jobs:
        assert rig.ends(job).state == "done"
    assert rig.effects() == [str(number) for number in range(20)]


@pytest.mark.parametrize(
    ("variables", "code", "says"),
    [
        ({"SIDESTREAM_APP": "tests.acceptance.nothing:actions"}, 2, "cannot be imported"),
        ({"SIDESTREAM_APP": "no-colon"}, 2, "module:attribute"),
        ({"SIDESTREAM_DATABASE_URL": "postgresql://127.0.0.1:1/none"}, 3, "PostgreSQL"),
        ({"SIDESTREAM_CHILDREN": "0"}, 2, "children"),
        ({"SIDESTREAM_QUEUES": "odd queue!"}, 2, "queue"),
        ({"SIDESTREAM_NONSENSE": "1"}, 2, "SIDESTREAM_NONSENSE"),
    ],
)
def test_a_worker_that_cannot_work_says_why_in_one_sentence(
    rig: Rig, variables: dict[str, str], code: int, says: str
) -> None:
    ended = subprocess.run(
        [COMMAND, "worker"], cwd=ROOT, env={**rig.variables, **variables}, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
