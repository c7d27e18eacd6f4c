"""What the timeout monitor takes from a worker whose children are busy."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidestream.broker.protocol import Delivery, Lease
from sidestream.job.reference import row_reference
from sidestream.worker.options import WorkerOptions
from sidestream.worker.slots import Slots
from sidestream.worker.state import ChildState, WorkerState
from sidestream.worker.timeout_monitor import TimeoutMonitor


def delivery(number: int) -> Delivery:
    """Return a delivery of row ``number``."""
    return Delivery(row_reference(b"12345678", number, "act", None).pack(), "lane", Lease(b"%d" % number, "me", 1), 0)


class Look:
    """A timeout monitor over the states of two children; the first one has run a job for a second."""

    def __init__(self, folder: Path) -> None:
        self.state = WorkerState(WorkerOptions("me", ("lane",), folder, children=2))
        slots, descriptor = Slots.create(folder / "slots", 2)
        os.close(descriptor)
        self.released: list[Delivery] = []
        settler = SimpleNamespace(release=self.released.extend, started=lambda *about: None)
        pool: Any = SimpleNamespace()
        self.timeout_monitor = TimeoutMonitor(self.state, pool, slots, settler)
        self.busy, self.idle = (ChildState(slot, None, pid=1000 + slot) for slot in range(2))  # type: ignore[arg-type]
        self.state.children = {0: self.busy, 1: self.idle}
        self.busy.batch, self.busy.deliveries = 1, [delivery(9)]
        slots.assign(0, 1, 1)
        slots.start(0, 0, time.monotonic() - 1, self.busy.deliveries[0].reference)


@pytest.fixture
def look(tmp_path: Path) -> Look:
    return Look(tmp_path)


def test_jobs_behind_a_long_lone_job_are_released(look: Look) -> None:
    """A suspect too: it may be paused meanwhile, and others may run it now."""
    look.state.exclusive = look.busy
    look.state.backlog.append(delivery(1))
    look.state.alone.append(delivery(2))
    look.timeout_monitor.tick()
    assert look.released == [delivery(1), delivery(2)]
    assert not look.state.backlog
    assert not look.state.alone


def test_a_job_that_waits_to_run_alone_keeps_its_place_while_the_others_end(look: Look) -> None:
    """Handed back, it would be claimed by the idle child at once, and others that take longer with it."""
    look.state.alone.append(delivery(2))
    look.timeout_monitor.tick()
    assert look.released == []
    assert list(look.state.alone) == [delivery(2)]
