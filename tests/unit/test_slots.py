"""A slot tells exactly what its child runs, even to a process that starts after all others died."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidestream.job.reference import row_reference
from sidestream.worker.slots import Slots

REFERENCE = row_reference(b"12345678", 42, "ship", "carrier:7").pack()


def test_the_supervisor_reads_what_the_child_writes(tmp_path: Path) -> None:
    slots, descriptor = Slots.create(tmp_path / "slots", 2)
    os.close(descriptor)
    slots.assign(1, batch=7, size=3)
    slots.backend(1, 4711)
    slots.start(1, 2, 12.5, REFERENCE)
    slots.acquired(1, 4)
    slots.guard(1, 4712)

    reading = slots.read(1)

    assert reading == (2, True, 12.5, 4711, 4, 3, 7, REFERENCE, 4712)
    slots.clear(1)
    assert slots.read(1).guard == 0
    assert not slots.read(0).running


def test_a_job_that_was_not_acquired_has_no_attempts(tmp_path: Path) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    slots.start(0, 0, 1.0, REFERENCE)
    slots.acquired(0, 3)

    slots.start(0, 1, 2.0, REFERENCE)

    assert slots.read(0).attempts_seen == -1


def test_a_recall_forbids_the_next_start(tmp_path: Path) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    slots.assign(0, batch=1, size=5)
    slots.start(0, 1, 1.0, REFERENCE)
    assert slots.limit(0) == 5

    slots.recall(0)

    assert slots.limit(0) == 2


def test_the_next_worker_reads_the_slots_of_a_dead_one(tmp_path: Path) -> None:
    slots, descriptor = Slots.create(tmp_path / "slots", 2)
    slots.start(0, 0, 1.0, REFERENCE)
    slots.close()
    os.close(descriptor)

    readings = Slots.dead_workers(tmp_path / "slots")

    assert [(r.running, r.reference) for r in readings] == [(True, REFERENCE), (False, b"")]
    assert Slots.dead_workers(tmp_path / "nothing") == []


@contextmanager
def forked(body: Callable[[], None]) -> Iterator[int]:
    """Run ``body`` in a child process over and over until the block ends."""
    pid = os.fork()
    if pid == 0:
        while True:
            body()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


READS = 300_000
FIRST, SECOND = (row_reference(b"12345678", number, "ship", None).pack() for number in (1, 2))


def test_a_reading_is_of_one_job_while_the_child_goes_on(tmp_path: Path) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    slots.assign(0, batch=3, size=2)
    jobs = {0: (1.5, FIRST), 1: (2.5, SECOND)}

    def child() -> None:
        for position, (started, reference) in jobs.items():
            slots.start(0, position, started, reference)
            slots.acquired(0, position)
            slots.stop(0)

    running = 0
    with forked(child):
        while running < READS:
            reading = slots.read(0)
            assert (reading.limit, reading.batch) == (2, 3)
            if reading.running:
                running += 1
                assert (reading.started, reading.reference) == jobs[reading.position]
                assert reading.attempts_seen in (-1, reading.position)


def test_a_child_never_sees_a_limit_that_nobody_set(tmp_path: Path) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    slots.assign(0, batch=1, size=9)

    def child() -> None:
        slots.recall(0)
        slots.assign(0, batch=1, size=9)

    with forked(child):
        assert {slots.limit(0) for _ in range(READS)} <= {1, 9}


@pytest.mark.parametrize("times", range(3))
def test_a_kill_leaves_the_old_or_the_new_one(tmp_path: Path, times: int) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    for _ in range(20):
        slots.assign(0, batch=3, size=2)
        slots.start(0, 0, 1.5, FIRST)

        def child() -> None:
            slots.start(0, 1, 2.5, SECOND)
            slots.start(0, 0, 1.5, FIRST)

        with forked(child):
            while slots.read(0).position == 0:
                pass
        reading = slots.read(0)
        assert (reading.position, reading.started, reading.batch) in ((0, 1.5, 3), (1, 2.5, 3))
