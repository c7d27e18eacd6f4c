"""The folder of one worker, and what workers that died on this host left behind.

``<data>/run/<worker>/lock`` is held with flock(2) as long as the worker lives, so a death is certain:
https://man7.org/linux/man-pages/man2/flock.2.html. A clean stop removes the folder, or leaves it without slots when
Redis was away: leases may be left, but nothing runs. An unclean end leaves its slots, which say exactly what ran.
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
"""File in a worker's folder: what its children run."""
QUIET = "quiet"
"""File in a worker's folder that asks it to claim nothing."""


class RunFolder:
    """This worker's folder, locked until :meth:`remove` or our death."""

    def __init__(self, data: Path, worker: str) -> None:
        self.path = data / "run" / worker
        # Made and locked under a hidden name: a folder that others see is locked, or its owner is dead.
        hidden = data / "run" / f".{worker}"
        hidden.mkdir(parents=True, mode=0o700)
        self._lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        hidden.rename(self.path)

    def remove(self, *, leases_left: bool = False) -> None:
        """After a clean stop: leave nothing behind, or with ``leases_left`` that nothing of them runs any more."""
        if leases_left:
            (self.path / SLOTS).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def living(data: Path) -> list[Path]:
    """Return the folders of the workers that live on this host and share the data folder, by name."""
    return [folder for folder in sorted((data / "run").glob("[!.]*")) if _is_alive(folder)]


def is_quiet(folder: Path) -> bool:
    """Whether the worker of ``folder`` was asked to claim nothing."""
    return (folder / QUIET).exists()


def set_quiet(folder: Path, *, quiet: bool) -> bool:
    """Ask the worker of ``folder`` to claim nothing, or to go on; False when that was asked before.

    Its folder ends with it, so a worker that starts anew is never quiet.
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
    #: Whether it left slots: a clean stop leaves none.
    unclean: bool
    #: Monotonic time.
    found_at: float


class DeadWorkers:
    """What dead workers on this host were running, by worker."""

    def __init__(self, data: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._data = data / "run"
        self._monotonic = monotonic
        self._found: dict[str, _Dead] = {}

    def scan(self) -> bool:
        """Read the folders of dead workers and kill what their children started.

        Returns whether one of them came to an unclean end.
        """
        for folder in sorted(self._data.glob("[!.]*")):
            if folder.name not in self._found and _is_dead(folder):
                slots = Slots.dead_workers(folder / SLOTS)
                running = frozenset(slot.reference for slot in slots if slot.running)
                self._found[folder.name] = _Dead(running, bool(slots), self._monotonic())
                kill_family(folder.name)
        return any(dead.unclean for dead in self._found.values())

    def running(self, worker: str) -> frozenset[bytes] | None:
        """Return the references that ``worker`` was running when it died; None when it is not known here."""
        if worker not in self._found:
            self.scan()
        found = self._found.get(worker)
        return None if found is None else found.running

    def unclean(self) -> dict[str, frozenset[bytes]]:
        """Return what the workers that came to an unclean end were running, by worker."""
        self.scan()
        return {worker: dead.running for worker, dead in self._found.items() if dead.unclean}

    def tidy(self, kept: float, clear_since: float | None) -> None:
        """Remove the folders that were found ``kept`` seconds ago, if leases have been taken over for as long.

        ``clear_since``: the monotonic time since when that was never held up; None when it is now. By then every lease
        of theirs is taken over; before, their slots say which of those jobs did not run.
        """
        if clear_since is None:
            return
        now = self._monotonic()
        for worker in [name for name, dead in self._found.items() if now - max(dead.found_at, clear_since) > kept]:
            del self._found[worker]
            shutil.rmtree(self._data / worker, ignore_errors=True)


def kill_family(worker: str) -> None:
    """Kill every process that children of ``worker`` started and that outlived them all."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(FAMILY) == worker and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
                log.warning(
                    "Killing process %s, which the dead worker %s left behind.",
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
        return False  # it is just being removed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
