"""Process trees as the kernel shows them, and signals to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from pathlib import Path


def state(pid: int) -> str:
    """Return the kernel's state letter of ``pid`` (T: stopped, Z: dead, not waited for), or "" when it is gone."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def alive(pid: int) -> bool:
    """Whether ``pid`` still exists and is not a corpse."""
    return state(pid) not in ("", "Z", "X")


def parent(pid: int) -> int:
    """Return the parent of ``pid``, or 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def tree(root: int) -> list[int]:
    """Return the live processes below ``root``, it first, parents before children."""
    below: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) and fields[0] not in "ZX":
            below[int(fields[1])].append(int(entry.name))
    found = [root] if alive(root) else []
    for pid in found or [root]:
        found.extend(below.get(pid, ()))
    return found


def kill(*pids: int) -> None:
    """SIGKILL each; one that is gone already is fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop(*pids: int) -> None:
    """SIGSTOP each."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    """Wake a process that told the harness that it stops: it may not have stopped yet, and would sleep for ever."""
    for _ in range(2000):
        letter = state(pid)
        if letter in ("", "Z", "X"):
            return
        if letter == "T":
            break
        time.sleep(0.0005)  # between its datagram and its SIGSTOP there is nothing that could be waited for
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def wait_gone(pids: list[int], patience: float) -> list[int]:
    """Wait until all are gone; return those that are not after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    left = [pid for pid in pids if alive(pid)]
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = [pid for pid in left if alive(pid)]
    return left


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
