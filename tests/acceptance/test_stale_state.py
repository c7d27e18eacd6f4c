"""The worker and the command line follow changes of the database, the job and Redis."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.acceptance.rig import COMMAND, ROOT, Rig
from tests.support.servers import RedisServer


def cli(rig: Rig, *words: str) -> Any:
    """Run a command and return its JSON."""
    done = subprocess.run(
        [COMMAND, *words, "--json"], cwd=ROOT, env=rig.variables, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def inside(rig: Rig, folder: Path) -> int:
    """Enqueue a job that runs until it is let go; return when it runs."""
    job_id = rig.enqueue("enter", str(folder))
    rig.until(lambda: (folder / f"in-{job_id}").exists())
    return job_id


def go_on(folder: Path, job_id: int) -> None:
    (folder / f"go-{job_id}").touch()


def test_a_worker_goes_on_when_its_database_is_adopted(rig: Rig) -> None:
    worker = rig.start()
    rig.ends(rig.enqueue("note"))
    cli(rig, "db", "adopt")
    adopted = time.monotonic()
    assert rig.ends(rig.enqueue("note"), seconds=60).state == "done"
    assert time.monotonic() - adopted < 8
    assert worker.poll() is None


def test_a_job_that_runs_while_its_database_is_adopted_ends_once(rig: Rig) -> None:
    folder = rig.folder
    worker = rig.start(SIDESTREAM_CHILDREN="2")
    running = inside(rig, folder)
    cli(rig, "db", "adopt")
    rig.until(lambda: b"adopted" in rig.log.read_bytes())
    go_on(folder, running)
    assert rig.ends(running).state == "done"
    assert rig.ends(rig.enqueue("note")).state == "done"
    assert rig.effects(running) == ["entered"]
    assert worker.poll() is None


def test_a_released_job_is_not_shown_as_running(rig: Rig) -> None:
    worker = rig.start()
    job_id = inside(rig, rig.folder)
    rig.until(lambda: "started" in rig.events(job_id), 30)
    assert cli(rig, "job", "show", str(job_id))["status"] == "running"
    worker.send_signal(signal.SIGTERM)
    rig.until(lambda: b"Draining" in rig.log.read_bytes())
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)
    assert cli(rig, "job", "show", str(job_id))["status"] == "waiting"
    [listed] = cli(rig, "jobs")["jobs"]
    assert listed["status"] == "waiting"


def test_a_running_job_is_listed_as_running(rig: Rig) -> None:
    rig.start(SIDESTREAM_CHILDREN="1")
    job_id = inside(rig, rig.folder)
    waiting = rig.enqueue("note")
    assert [(one["id"], one["status"]) for one in cli(rig, "jobs")["jobs"]] == [
        (waiting, "waiting"),
        (job_id, "running"),
    ]
    assert [one["id"] for one in cli(rig, "jobs", "--running")["jobs"]] == [job_id]
    assert cli(rig, "job", "show", str(job_id))["status"] == "running"
    go_on(rig.folder, job_id)
    rig.ends(waiting)
    assert cli(rig, "jobs", "--running")["jobs"] == []


def test_the_first_worker_on_a_fresh_redis_starts_jobs_immediately(rig: Rig, redis_server: RedisServer) -> None:
    job_id = rig.enqueue("note")
    redis_server.flushall()
    rig.start(SIDESTREAM_RENEW_INTERVAL="3", SIDESTREAM_LEASE="15")
    serves = time.monotonic()
    rig.ends(job_id)
    assert time.monotonic() - serves < 2.5
    assert b"Redis was emptied" not in rig.log.read_bytes()


def test_a_killed_worker_is_silent_at_once(rig: Rig) -> None:
    """PostgreSQL ends its lock with its process; its announcement lasts a lease longer."""
    worker = rig.start(SIDESTREAM_CHILDREN="1", SIDESTREAM_RENEW_INTERVAL="3", SIDESTREAM_LEASE="60")
    inside(rig, rig.folder)
    waiting = rig.enqueue("note")
    [listed] = cli(rig, "worker", "list")["workers"]
    assert listed["state"] == "working"
    worker.kill()
    worker.wait()
    killed = time.monotonic()
    rig.until(lambda: cli(rig, "worker", "list")["workers"][0]["state"] == "silent", 30)
    print(f"silent after {time.monotonic() - killed:.1f} s")
    assert cli(rig, "worker", "list")["workers"][0]["jobs"] == []
    why = cli(rig, "job", "why", str(waiting))["why"]
    assert why == f"Job {waiting} waits because no worker that is alive serves the queue 'default'."
