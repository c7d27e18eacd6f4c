"""Manage the folder of a worker, and the folders of workers that died on this host.

A living worker holds ``<data>/run/<worker>/lock`` with flock(2), so a death can be detected with certainty:
https://man7.org/linux/man-pages/man2/flock.2.html. A clean stop removes the folder. While Redis is unavailable, it
leaves the folder without slots, because leases may remain but no job runs. An unclean end leaves the slots.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from sidestream.worker.slots import Slots
from sidestream.worker.zygote import FAMILY

log = logging.getLogger(__name__)

SLOTS = "slots"
"""File in a worker's folder that holds the slots of its children."""
QUIET = "quiet"
"""File in a worker's folder that makes it quiet."""


class RunFolder:
    """This worker's folder, locked until :meth:`remove` or the end of this process."""

    def __init__(self, data: Path, worker: str) -> None:
        self.path = data / "run" / worker
        # Create and lock it under a hidden name, so that every visible folder is locked or its owner is dead.
        hidden = data / "run" / f".{worker}"
        hidden.mkdir(parents=True, mode=0o700)
        self._lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        hidden.rename(self.path)

    def remove(self, *, leases_left: bool = False) -> None:
        """Remove the folder, or only its slots if leases are left that no job runs under."""
        if leases_left:
            (self.path / SLOTS).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def living(data: Path) -> list[Path]:
    """Return the folders of the living workers of this data folder, sorted by name."""
    return [folder for folder in sorted((data / "run").glob("[!.]*")) if _is_alive(folder)]


def is_quiet(folder: Path) -> bool:
    """Return whether the worker of ``folder`` is quiet."""
    return (folder / QUIET).exists()


def set_quiet(folder: Path, *, quiet: bool) -> bool:
    """Make the worker of ``folder`` quiet, or end that; return False if nothing changes.

    Each worker has a new folder, so a worker never starts quiet.
    """
    if is_quiet(folder) == quiet:
        return False
    if quiet:
        (folder / QUIET).touch(mode=0o600)
    else:
        (folder / QUIET).unlink(missing_ok=True)
    return True


@dataclass(frozen=True, slots=True)
class _Dead:
    running: frozenset[bytes]
    #: Whether it left slots, which a clean stop does not.
    unclean: bool
    #: Monotonic time at which its folder was found.
    found_at: float


class DeadWorkers:
    """The dead workers of this host, with the jobs that each was running."""

    def __init__(self, data: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._data = data / "run"
        self._monotonic = monotonic
        self._found: dict[str, _Dead] = {}

    def scan(self) -> bool:
        """Read the folders of dead workers and kill the processes that their children started.

        Returns whether one of them ended uncleanly.
        """
        for folder in sorted(self._data.glob("[!.]*")):
            if folder.name not in self._found and _is_dead(folder):
                slots = Slots.dead_workers(folder / SLOTS)
                running = frozenset(slot.reference for slot in slots if slot.running)
                self._found[folder.name] = _Dead(running, bool(slots), self._monotonic())
                kill_family(folder.name)
        return any(dead.unclean for dead in self._found.values())

    def running(self, worker: str) -> frozenset[bytes] | None:
        """Return the references that ``worker`` ran when it died; None if it has no folder."""
        if worker not in self._found:
            self.scan()
        found = self._found.get(worker)
        return None if found is None else found.running

    def unclean(self) -> dict[str, frozenset[bytes]]:
        """Return the references that each uncleanly ended worker was running."""
        self.scan()
        return {worker: dead.running for worker, dead in self._found.items() if dead.unclean}

    def tidy(self, kept: float, clear_since: float | None) -> None:
        """Remove folders ``kept`` seconds after they were found, when their leases were taken over.

        Takeovers must have been possible for as long: ``clear_since`` is the monotonic time since which they were never
        suspended, or None if they are suspended now. Until then, the slots show which leased jobs did not run.
        """
        if clear_since is None:
            return
        now = self._monotonic()
        for worker in [name for name, dead in self._found.items() if now - max(dead.found_at, clear_since) > kept]:
            del self._found[worker]
            shutil.rmtree(self._data / worker, ignore_errors=True)


def kill_family(worker: str) -> None:
    """Kill every process that the children of the dead ``worker`` started."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(FAMILY) == worker and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
                log.warning(
                    "Killing process %s, which the dead worker %s left running.",
                    process.pid,
                    worker,
                    extra={"action": "orphan_killed"},
                )


def _is_alive(folder: Path) -> bool:
    return (folder / "lock").exists() and not _is_dead(folder)


def _is_dead(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # another process is removing it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
