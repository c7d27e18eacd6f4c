"""A slot says exactly what its child runs, also to a process that starts after everybody died."""

from __future__ import annotations

import os
from pathlib import Path

from sidestream.job.reference import row_reference
from sidestream.worker.slots import Slots

REFERENCE = row_reference(b"12345678", 42, "ship", "carrier:7").pack()


def test_what_the_child_writes_is_what_the_supervisor_reads(tmp_path: Path) -> None:
    slots, descriptor = Slots.create(tmp_path / "slots", 2)
    os.close(descriptor)
    slots.assign(1, batch=7, size=3)
    slots.backend(1, 4711)
    slots.start(1, 2, 12.5, REFERENCE)
    slots.opened(1, 4)
    slots.guard(1, 4712)

    reading = slots.read(1)

    assert reading == (2, True, 12.5, 4711, 4, 3, 7, REFERENCE, 4712)
    slots.clear(1)
    assert slots.read(1).guard == 0
    assert not slots.read(0).running


def test_a_job_that_was_not_opened_has_no_attempts_seen(tmp_path: Path) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    slots.start(0, 0, 1.0, REFERENCE)
    slots.opened(0, 3)

    slots.start(0, 1, 2.0, REFERENCE)

    assert slots.read(0).attempts_seen == -1


def test_a_recall_forbids_the_next_start(tmp_path: Path) -> None:
    slots, _ = Slots.create(tmp_path / "slots", 1)
    slots.assign(0, batch=1, size=5)
    slots.start(0, 1, 1.0, REFERENCE)
    assert slots.limit(0) == 5

    slots.recall(0)

    assert slots.limit(0) == 2


def test_the_next_supervisor_reads_what_a_dead_one_left(tmp_path: Path) -> None:
    slots, descriptor = Slots.create(tmp_path / "slots", 2)
    slots.start(0, 0, 1.0, REFERENCE)
    slots.close()
    os.close(descriptor)

    readings = Slots.left_behind(tmp_path / "slots")

    assert [(r.running, r.reference) for r in readings] == [(True, REFERENCE), (False, b"")]
    assert Slots.left_behind(tmp_path / "nothing") == []
