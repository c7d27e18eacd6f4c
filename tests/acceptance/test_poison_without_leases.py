"""A job that kills its worker runs three times at most, also where no lease tells of the deaths."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tests.acceptance.rig import Rig
from tests.support.servers import RedisServer

MOST = 3
STARTS = 5


def _file(rig: Rig) -> Path:
    file = rig.log.with_name("starts")
    file.touch(mode=0o666)
    file.chmod(0o666)
    return file


def _runs(file: Path) -> int:
    return len(file.read_text().split())


def _start_again_and_again(rig: Rig, file: Path, job_id: int, **variables: str) -> None:
    """Start a worker as a service manager would, until the job is over."""
    for _ in range(STARTS):
        worker = rig.start(**variables)
        rig.until(lambda: worker.poll() is not None or rig.job(job_id).state != "pending", 30)  # noqa: B023
        if worker.poll() is None:
            return
    pytest.fail(f"It ran {_runs(file)} times:\n{rig.job(job_id)}\n{rig.log.read_text()[-3000:]}")


def test_while_redis_is_away(rig: Rig, redis_server: RedisServer) -> None:
    file = _file(rig)
    job_id = rig.enqueue("kills.its.worker", str(file))
    redis_server.stop()
    _start_again_and_again(rig, file, job_id)
    row = rig.job(job_id)
    assert (row.state, row.crashes, _runs(file)) == ("failed", 3, MOST)


def test_where_redis_is_emptied_after_each_death(rig: Rig, redis_server: RedisServer) -> None:
    file = _file(rig)
    job_id = rig.enqueue("kills.its.worker", str(file))
    for _ in range(STARTS):
        worker = rig.start()
        rig.until(lambda: worker.poll() is not None or rig.job(job_id).state != "pending", 30)  # noqa: B023
        redis_server.flushall()
        if worker.poll() is None:
            break
    row = rig.job(job_id)
    assert (row.state, row.crashes, _runs(file)) == ("failed", 3, MOST)


def test_of_a_direct_job_whose_worker_has_a_fresh_data_folder_at_each_start(rig: Rig) -> None:
    file = _file(rig)
    rig.jobs.enqueue_direct("kills.its.worker", (str(file),))
    with redis.Redis.from_url(rig.variables["SIDESTREAM_REDIS_URL"]) as client:
        for number in range(STARTS):
            folder = rig.log.with_name(f"pod-{number}")
            worker = rig.start(SIDESTREAM_DATA_DIR=str(folder))
            rig.until(
                lambda: worker.poll() is not None or client.hlen("sidestream:{s0}:failed"),  # noqa: B023
                30,
            )
            if worker.poll() is None:
                break
    assert _runs(file) == MOST


def test_in_pods_while_redis_is_away(rig: Rig, redis_server: RedisServer) -> None:
    """Nothing is left of a worker but its row in PostgreSQL: the first run cannot be charged, each later one is."""
    file = _file(rig)
    job_id = rig.enqueue("kills.its.worker", str(file))
    redis_server.stop()
    for number in range(STARTS):
        folder = rig.log.with_name(f"pod-{number}")
        worker = rig.start(SIDESTREAM_DATA_DIR=str(folder), SIDESTREAM_RECOVERY_PERIOD="30")
        rig.until(lambda: worker.poll() is not None or rig.job(job_id).state != "pending", 30)  # noqa: B023
        if worker.poll() is None:
            break
    row = rig.job(job_id)
    assert (row.state, row.crashes, _runs(file)) == ("failed", 3, MOST + 1)
