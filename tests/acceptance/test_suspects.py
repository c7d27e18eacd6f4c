"""A suspect, and the recovery period after an unclean end, delay other jobs for a bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sidestream.worker.state import ALONE_MOST, END_OTHERS
from tests.acceptance.rig import Rig

FOUR = {"SIDESTREAM_CHILDREN": "4", "SIDESTREAM_LEASE": "10"}
MACHINE = 3.0
"""Seconds that a busy machine may add."""


class Long:
    """A job that runs until it is told to end."""

    def __init__(self, rig: Rig, name: str, suspects: int = 0) -> None:
        self.rig = rig
        self.file = Path(f"{rig.log.parent}/{name}")
        with rig.jobs.transaction(rig.connection) as transaction:
            self.job = transaction.enqueue("until", (str(self.file),))
            rig.connection.execute("UPDATE sidestream_job SET suspects = %s WHERE id = %s", (suspects, self.job))

    def runs(self) -> None:
        """Wait until it runs."""
        self.rig.until(lambda: "started" in self.rig.events(self.job))

    def details(self) -> list[str]:
        """Return what its attempt rows say."""
        found = self.rig.look.execute(
            "SELECT split_part(detail, '|', 1) FROM sidestream_attempt WHERE job_id = %s ORDER BY id", (self.job,)
        )
        return [detail for (detail,) in found]

    def is_alone(self) -> bool:
        """Whether its last attempt row says that it runs alone."""
        return self.details()[-1:] == ["alone"]

    def ends(self) -> None:
        """Let it end well."""
        self.file.touch()
        row = self.rig.ends(self.job)
        assert (row.state, row.attempts, row.crashes) == ("done", 0, 0)


def waited(rig: Rig) -> float:
    """Return after how many seconds an urgent job is done."""
    began = time.monotonic()
    assert rig.ends(rig.enqueue("note", "urgent", priority=0), 40).state == "done"
    return time.monotonic() - began


def test_a_suspect_beside_a_long_job_keeps_no_other_job_waiting(rig: Rig) -> None:
    rig.start(**FOUR)
    long = Long(rig, "long")
    long.runs()
    suspects = [Long(rig, f"suspect {number}", suspects=1) for number in range(2)]
    seconds = waited(rig)
    print(f"an urgent job was done after {seconds:.2f} s")
    assert seconds < MACHINE
    for suspect in suspects:
        suspect.runs()
    for job in (*suspects, long):
        job.ends()


def test_a_job_whose_host_died_repeatedly_keeps_others_waiting_for_a_bounded_time(rig: Rig) -> None:
    rig.start(**FOUR)
    long = Long(rig, "long")
    long.runs()
    accused = [Long(rig, f"accused {number}", suspects=2) for number in range(2)]
    rig.until(
        lambda: rig.look.execute(
            "SELECT 1 FROM sidestream_attempt WHERE split_part(detail, '|', 1) = 'alone'"
        ).fetchone()
    )
    seconds = waited(rig)
    print(f"an urgent job was done after {seconds:.2f} s")
    assert seconds < ALONE_MOST + MACHINE
    [first, second] = sorted(accused, key=lambda one: not one.is_alone())
    assert first.is_alone(), "it is charged if its host dies, also when others run beside it"
    for _ in range(3):
        assert waited(rig) < MACHINE, "others were held up for it, and have the worker now"
    assert "alone" not in second.details(), "only one of them runs at a time"
    first.ends()
    rig.until(second.is_alone, END_OTHERS + 2 * ALONE_MOST + MACHINE)
    second.ends()
    long.ends()


@pytest.mark.parametrize("long_jobs", [1, 3])
def test_after_an_unclean_restart_a_long_job_keeps_others_waiting_for_a_bounded_time(rig: Rig, long_jobs: int) -> None:
    run_alone = {**FOUR, "SIDESTREAM_RECOVERY_PERIOD": "60"}
    worker = rig.start(**run_alone)
    assert rig.ends(rig.enqueue("note")).state == "done"
    worker.kill()
    worker.wait(20)
    jobs = [Long(rig, f"long {number}") for number in range(long_jobs)]
    rig.start(**run_alone)
    jobs[0].runs()
    assert jobs[0].is_alone()
    seconds = waited(rig)
    print(f"an urgent job was done after {seconds:.2f} s")
    assert seconds < long_jobs * ALONE_MOST + MACHINE
    assert jobs[0].details()[-2:] == ["alone", "running"], "others run beside it, and what they do is not charged to it"
    for job in jobs:
        job.ends()
