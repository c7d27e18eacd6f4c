"""The folder of a dead worker is recognized by its free lock and tells which jobs ran."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import psutil

from sidestream.job.reference import row_reference
from sidestream.worker.run_dir import DeadWorkers, RunFolder
from sidestream.worker.slots import Slots
from sidestream.worker.zygote import FAMILY

REFERENCE = row_reference(b"12345678", 7, "ship", None).pack()


def _dies(data: Path, supervisor: str) -> None:
    """Leave a folder as a killed supervisor does: with a slot that runs, its lock free."""
    folder = data / "run" / supervisor
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    slots, descriptor = Slots.create(folder / "slots", 2)
    slots.start(1, 0, 1.0, REFERENCE)
    slots.close()
    os.close(descriptor)


def test_a_clean_stop_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "me")
    assert not DeadWorkers(tmp_path).scan()
    folder.remove()
    assert not (tmp_path / "run" / "me").exists()


def test_a_dead_worker_is_found_with_the_jobs_that_it_ran(tmp_path: Path) -> None:
    RunFolder(tmp_path, "alive")
    _dies(tmp_path, "failed")
    left = DeadWorkers(tmp_path)

    assert left.scan()

    assert left.running("failed") == frozenset({REFERENCE})
    assert left.running("alive") is None
    assert left.running("on another host") is None


def test_the_folder_is_kept_as_long_as_leases_may_be_left(tmp_path: Path) -> None:
    now = [100.0]
    _dies(tmp_path, "failed")
    left = DeadWorkers(tmp_path, monotonic=lambda: now[0])
    left.scan()
    now[0] += 30
    left.tidy(kept=33, clear_since=0.0)
    assert left.running("failed") is not None
    now[0] += 60
    left.tidy(kept=33, clear_since=None)
    left.tidy(kept=33, clear_since=now[0] - 30)
    assert left.running("failed") is not None, "no lease was taken over meanwhile"
    left.tidy(kept=33, clear_since=now[0] - 34)
    assert left.running("failed") is None
    assert list((tmp_path / "run").iterdir()) == []


def test_a_clean_stop_that_may_have_left_leases_records_that_nothing_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "me")
    slots, descriptor = Slots.create(folder.path / "slots", 1)
    slots.start(0, 0, 1.0, REFERENCE)  # released, but its slot does not know it
    slots.close()
    os.close(descriptor)
    folder.remove(leases_left=True)
    left = DeadWorkers(tmp_path)
    assert not left.scan(), "nothing died: whoever starts next need not be run_alone"
    assert left.running("me") == frozenset()


def test_processes_that_a_dead_worker_s_children_started_are_killed(tmp_path: Path) -> None:
    orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={FAMILY: "failed"})
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={FAMILY: "alive"})
    _dies(tmp_path, "failed")
    try:
        DeadWorkers(tmp_path).scan()
        assert orphan.wait(10) == -9
        assert psutil.Process(other.pid).is_running()
        assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.communicate()


def test_the_lock_is_held_while_the_folder_can_be_seen(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "me")
    descriptor = os.open(folder.path / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)
    raise AssertionError("the folder of a living supervisor is not locked")
