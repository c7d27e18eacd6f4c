"""A job whose PostgreSQL session ends while it runs is started three times at most, and only that job is charged."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psycopg
import redis

from sidestream.store import queries
from tests.acceptance.rig import Rig


def _starts(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def _file(rig: Rig) -> Path:
    file = rig.log.with_name("starts")
    file.touch(mode=0o666)
    file.chmod(0o666)
    return file


def _ends(rig: Rig, job_id: int) -> queries.Row:
    """Wait until the job is over, on sessions that end with every crash of the server."""
    deadline = time.monotonic() + 40
    while True:
        try:
            return rig.ends(job_id, 40)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
        rig.look.close()
        while rig.look.closed and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):  # the server is in recovery
                rig.look = psycopg.connect(rig.dsn, autocommit=True)


def test_a_job_that_loses_its_session_each_time_fails_at_the_third(rig: Rig) -> None:
    file = _file(rig)
    rig.start()
    job_id = rig.enqueue("terminates.its.session", str(file))
    row = rig.ends(job_id)
    assert (row.state, row.crashes, len(_starts(file))) == ("failed", 3, 3)
    assert row.error is not None
    assert "PostgreSQL session" in row.error


def test_a_direct_job_that_loses_its_session_each_time_fails_at_the_third(rig: Rig) -> None:
    file = _file(rig)
    rig.start()
    rig.jobs.enqueue_direct("terminates.its.session", (str(file),))
    rig.until(lambda: len(_starts(file)) >= 3)
    with redis.Redis.from_url(rig.variables["SIDESTREAM_REDIS_URL"]) as client:
        rig.until(lambda: client.hlen("sidestream:{s0}:failed") == 1)
    assert len(_starts(file)) == 3


def test_a_killed_backend_is_charged_to_its_own_job_alone(rig: Rig) -> None:
    """PostgreSQL ends every session when one process of it is killed; the others are told why."""
    file, gate = _file(rig), rig.log.with_name("gate")
    rig.start(SIDESTREAM_CHILDREN="2")
    bystander = rig.enqueue("until", str(gate))
    rig.until(lambda: rig.events(bystander) == ["started"])
    killer = rig.enqueue("shows.its.session", str(file), 2)
    for death in range(1, 4):
        rig.until(lambda: len(_starts(file)) == death)  # noqa: B023
        os.kill(int(_starts(file)[-1]), signal.SIGKILL)
        gate.touch(mode=0o666)
    row = _ends(rig, killer)
    beside = _ends(rig, bystander)
    assert (row.state, row.crashes, len(_starts(file))) == ("failed", 3, 3)
    assert (beside.state, beside.crashes, beside.suspects, beside.attempts) == ("done", 0, 0, 0)


def test_a_slow_job_outlasts_the_idle_time_outs_of_the_server(rig: Rig) -> None:
    """Its session sets them to 0, and keeps what the operator asked for with PGOPTIONS."""
    file = _file(rig)
    name = rig.look.info.dbname
    newer = ["transaction_timeout"] if rig.look.info.server_version >= 170_000 else []
    for setting in ("idle_in_transaction_session_timeout", "idle_session_timeout", *newer):
        rig.look.execute(f"ALTER DATABASE {name} SET {setting} = '300ms'")
    try:
        rig.start(PGOPTIONS="-c work_mem=7MB -c idle_in_transaction_session_timeout=200ms")
        job_id = rig.enqueue("shows.its.session", str(file), 1.5)
        assert rig.ends(job_id).state == "done"
    finally:
        rig.look.execute(f"ALTER DATABASE {name} RESET ALL")
    assert len(_starts(file)) == 1
    assert rig.effects(job_id) == ["('7MB',)"]
