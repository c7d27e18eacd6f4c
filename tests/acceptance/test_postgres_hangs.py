"""A PostgreSQL that does not answer, or a session that does not end, affects only its own jobs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from sidestream.worker.lease import UNWRITTEN
from tests.acceptance.rig import Rig
from tests.support.pooler import pooler_before

PATIENCE = 30.0
"""Seconds that a busy machine may add to what should take few."""


HARD_LIMIT = 3.0
LEASE = 2.0
JOBS = 27


@pytest.mark.timeout(240)
def test_a_worker_whose_postgresql_never_answers_leaves_its_jobs_to_another_one(rig: Rig) -> None:
    limits = {"SIDESTREAM_HARD_LIMIT": str(HARD_LIMIT), "SIDESTREAM_LEASE": str(LEASE), "SIDESTREAM_CHILDREN": "4"}
    with pooler_before(rig.dsn) as (pooler, url):
        hung = rig.start(**limits, SIDESTREAM_DATABASE_URL=url)
        for _ in range(8):
            assert rig.ends(rig.enqueue("note")).state == "done"
        pooler.freeze()
        jobs = [rig.enqueue("note", str(number)) for number in range(JOBS)]
        rig.until(lambda: b"runs longer than its hard limit" in rig.log.read_bytes(), PATIENCE)
        rig.start(**limits)
        began = time.monotonic()
        unfinished = "SELECT NOT EXISTS (SELECT FROM sidestream_job WHERE state = 'pending')"
        rig.until(lambda: rig.look.execute(unfinished).fetchone() == (True,), 2 * UNWRITTEN + 4 * LEASE + PATIENCE)
        print(f"{JOBS} jobs were done {time.monotonic() - began:.1f} s after the first one was killed")
        assert sorted(map(int, rig.effects()[8:])) == list(range(JOBS))
        assert {rig.job(job).state for job in jobs} == {"done"}
        asked = time.monotonic()
        hung.send_signal(signal.SIGTERM)
        assert hung.wait(60) == 0, rig.log.read_text()
        print(f"it ended {time.monotonic() - asked:.1f} s after SIGTERM")
    said = rig.log.read_text()
    assert "Traceback" not in said, said
    assert "AttributeError" not in said


RUNNING = [("until", None), ("until", "k"), ("relock.heedless", None), ("until", None)]
"""Actions and keys of the jobs that run when it stops answering: with a key, and with a lock between transactions."""


@pytest.mark.timeout(240)
def test_the_jobs_that_ran_when_postgresql_stopped_answering_run_elsewhere(rig: Rig) -> None:
    limits = {"SIDESTREAM_HARD_LIMIT": str(HARD_LIMIT), "SIDESTREAM_LEASE": str(LEASE)}
    file = rig.folder / "go on"
    with pooler_before(rig.dsn) as (pooler, url):
        hung = rig.start(**limits, SIDESTREAM_CHILDREN=str(len(RUNNING)), SIDESTREAM_DATABASE_URL=url)
        jobs = [rig.enqueue(action, str(file), key=key) for action, key in RUNNING]
        rig.until(lambda: len(_held(rig)) == len(RUNNING))
        pooler.freeze()
        began = time.monotonic()
        held = _held(rig)
        rig.until(lambda: rig.log.read_bytes().count(b"runs longer than its hard limit") >= len(RUNNING), PATIENCE)
        file.touch()
        rig.start(**limits)
        unfinished = "SELECT NOT EXISTS (SELECT FROM sidestream_job WHERE state = 'pending')"
        bound = HARD_LIMIT + UNWRITTEN + 2 * LEASE + PATIENCE
        rig.until(lambda: rig.look.execute(unfinished).fetchone() == (True,), bound)
        print(f"{len(RUNNING)} jobs were done {time.monotonic() - began:.1f} s after PostgreSQL stopped answering")
        assert {rig.job(job).state for job in jobs} == {"done"}
        assert {(rig.job(job).crashes, rig.job(job).suspects) for job in jobs} == {(0, 0)}
        assert sorted(rig.effects()) == ["first", "later 0", "later 1", "waited", "waited", "waited"]
        assert not held & _held(rig)
        assert hung.poll() is None


def _held(rig: Rig) -> set[int]:
    """Return the sessions in which a job has written."""
    query = """SELECT pid FROM pg_stat_activity
               WHERE application_name ~ '^sidestream/.+/[0-9]+$' AND backend_xid IS NOT NULL"""
    return {pid for (pid,) in rig.look.execute(query)}


FAILING = 10


def test_a_session_that_does_not_end_holds_up_the_job_that_it_belonged_to_alone(rig: Rig) -> None:
    rig.start(SIDESTREAM_CHILDREN="3", SIDESTREAM_LEASE="10")
    file = Path(f"{rig.log.parent}/go on")
    job = rig.enqueue("until", str(file))
    rig.until(lambda: "started" in rig.events(job))
    query = """SELECT pid, split_part(application_name, '/', 3) FROM pg_stat_activity
               WHERE application_name LIKE 'sidestream/%' AND state = 'idle in transaction'"""
    [(backend, slot)] = rig.look.execute(query).fetchall()
    [child] = _children_in_slot(rig, int(slot))
    os.kill(backend, signal.SIGSTOP)
    try:
        os.kill(child, signal.SIGKILL)
        began = time.monotonic()
        for number in range(FAILING):
            failing = rig.enqueue("fail")
            assert rig.ends(failing, 60).state == "failed", number
        seconds = time.monotonic() - began
        print(f"{FAILING} jobs with two failed attempts each ended within {seconds:.1f} s")
        assert seconds < FAILING * 1.5
        assert rig.job(job).crashes == 0
    finally:
        os.kill(backend, signal.SIGCONT)
    file.touch()
    row = rig.ends(job)
    assert (row.state, row.crashes) == ("done", 1)
    assert rig.effects(job) == ["waited"]


def _children_in_slot(rig: Rig, slot: int) -> list[int]:
    """Return the process of the child whose session is called so: the port that it has open is the session's."""
    port = rig.look.execute(
        "SELECT client_port FROM pg_stat_activity WHERE application_name LIKE %s", (f"sidestream/%/{slot}",)
    ).fetchone()
    assert port is not None
    [worker] = rig.workers
    family = psutil.Process(worker.pid).children(recursive=True)
    return [one.pid for one in family if any(c.laddr.port == port[0] for c in one.net_connections())]
