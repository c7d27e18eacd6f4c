"""Quiet workers, rolling restarts, and two releases of an application on one Redis."""

from __future__ import annotations

import signal
import subprocess

from sidestream.store import control
from tests.acceptance.rig import COMMAND, ROOT, Rig

NEXT = {"SIDESTREAM_APP": "tests.acceptance.next_app:actions"}


def said(rig: Rig, text: str) -> None:
    rig.until(lambda: text in rig.log.read_text())


def test_an_unknown_action_waits_for_a_worker_that_knows_it(rig: Rig) -> None:
    """Old and new release on one Redis: neither charges nor loses what only the other knows."""
    rig.start()
    job, known = rig.enqueue("new.in.next"), rig.enqueue("note")
    assert rig.ends(known).state == "done"
    row = rig.job(job)
    assert (row.state, row.attempts, rig.events(job)) == ("pending", 0, [])
    rig.start(**NEXT)
    assert rig.ends(job).state == "done"
    jobs = [rig.enqueue(("new.in.next", "note")[number % 2]) for number in range(100)]
    assert {rig.ends(job).state for job in jobs} == {"done"}
    assert rig.effects(job) == ["next"]
    for job in jobs:
        assert len(rig.effects(job)) == 1
        assert rig.job(job).attempts == 0


def test_a_rolling_restart_loses_and_repeats_nothing(rig: Rig) -> None:
    """The order of docs/howto/stop.md: start the new one, quiet the old one, stop it when it is idle."""
    old = rig.start()
    jobs = [rig.enqueue("note", key=f"k{number % 5}") for number in range(200)]
    jobs += [rig.enqueue("wait", 0.2) for _ in range(4)]
    rig.start(**NEXT)
    jobs += [rig.enqueue("new.in.next") for _ in range(10)]
    old.send_signal(signal.SIGUSR1)
    said(rig, "Quiet: no more jobs are claimed")
    jobs += [rig.enqueue("note") for _ in range(50)]
    old.send_signal(signal.SIGTERM)
    assert old.wait(30) == 0, rig.log.read_text()
    for job in jobs:
        assert rig.ends(job, 60).state == "done"
        assert len(rig.effects(job)) == 1
        assert rig.job(job).attempts == 0


def test_a_quiet_worker_ends_what_runs_and_goes_on_when_told(rig: Rig) -> None:
    worker = rig.start()
    file = rig.log.parent / "go on"
    running = rig.enqueue("until", str(file))
    rig.until(lambda: "started" in rig.events(running))

    def quiet(*options: str) -> str:
        return subprocess.run(
            [COMMAND, "worker", "quiet", *options],
            cwd=ROOT,
            env=rig.variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "1 worker" in quiet()
    said(rig, "Quiet: no more jobs are claimed")
    waiting = rig.enqueue("note")
    file.touch()
    assert rig.ends(running).state == "done"
    assert rig.job(waiting).state == "pending"
    assert worker.poll() is None
    assert "was quiet already" in quiet()
    assert "1 worker" in quiet("--resume")
    assert rig.ends(waiting).state == "done"
    worker.send_signal(signal.SIGUSR1)
    rig.until(lambda: rig.log.read_text().count("Quiet: no more jobs are claimed") == 2)
    waiting = rig.enqueue("note")
    worker.send_signal(signal.SIGUSR1)
    assert rig.ends(waiting).state == "done"


def test_the_statement_of_a_cancelled_job_ends_with_it(rig: Rig) -> None:
    rig.start()
    job = rig.enqueue("statement")

    def backends() -> int:
        found = rig.look.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%statement under test%%' AND state = 'active' "
            "AND pid <> pg_backend_pid()"
        ).fetchone()
        assert found is not None
        return int(found[0])

    rig.until(lambda: backends() == 1 and "started" in rig.events(job))
    with rig.look.cursor() as cursor:
        assert control.cancel(cursor, job).locked
    assert rig.ends(job, 10).state == "cancelled"
    assert backends() == 0
