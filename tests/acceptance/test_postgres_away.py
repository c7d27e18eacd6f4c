"""During a PostgreSQL outage the worker waits, and logs it once."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.acceptance.rig import COMMAND, ROOT, Rig
from tests.support.servers import PostgresServer


def _lines(rig: Rig, words: str) -> int:
    return rig.log.read_text().count(words)


def _connect(rig: Rig) -> psycopg.Connection[Any]:
    rig.look.close()
    return psycopg.connect(rig.dsn, autocommit=True)


def test_a_worker_that_is_started_before_postgresql_waits_for_it(rig: Rig, postgres: PostgresServer) -> None:
    job_id = rig.enqueue("note")
    postgres.stop()
    with rig.log.open("ab") as log:
        worker = subprocess.Popen([COMMAND, "worker", "run"], cwd=ROOT, env=rig.variables, stderr=log, stdout=log)
    rig.workers.append(worker)
    rig.until(lambda: _lines(rig, "waits for PostgreSQL") or worker.poll() is not None)
    tried = time.monotonic() + 2  # it looks several times
    rig.until(lambda: time.monotonic() > tried or worker.poll() is not None)
    assert worker.poll() is None, rig.log.read_text()
    postgres.start()
    rig.look = _connect(rig)
    assert rig.ends(job_id).state == "done"
    assert (_lines(rig, "waits for PostgreSQL"), _lines(rig, "PostgreSQL can be used again")) == (1, 1)


def test_a_worker_that_waits_for_postgresql_says_so_in_one_line_and_ends_at_sigterm(rig: Rig) -> None:
    worker = subprocess.Popen(
        [COMMAND, "worker", "run"],
        cwd=ROOT,
        env={**rig.variables, "SIDESTREAM_DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stderr is not None
        first = worker.stderr.readline()
        worker.terminate()
        rest = worker.stderr.read()
    assert "This worker waits for PostgreSQL: PostgreSQL does not answer (connecting):" in first
    assert rest == ""
    assert worker.returncode == -signal.SIGTERM


def test_an_outcome_that_cannot_be_written_is_told_once(rig: Rig, postgres: PostgresServer) -> None:
    gate: Path = rig.log.with_name("gate")
    rig.start()
    job_id = rig.enqueue("until.fails.once", str(gate))
    rig.until(lambda: rig.events(job_id) == ["started"])
    postgres.stop()
    gate.touch(mode=0o666)
    rig.until(lambda: _lines(rig, "retrying: "))
    tried = time.monotonic() + 2
    rig.until(lambda: time.monotonic() > tried)
    assert _lines(rig, "retrying: ") == 1
    postgres.start()
    rig.look = _connect(rig)
    assert rig.ends(job_id).state == "done"
