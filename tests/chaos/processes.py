"""Process trees as the kernel shows them, and signals to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable

_START = 19
"""Place of the start time behind the process's name: proc_pid_stat(5), field 22."""


def state(pid: int) -> str:
    """Return the kernel's state letter of ``pid`` (T: stopped, Z: zombie), or "" when it is gone."""
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
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        if (fields := _stat(pid)) and fields[0] not in "ZX":
            below[int(fields[1])].append(pid)
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
    """Resume a process that announced its stop, and wait until it has stopped first; otherwise it would never wake."""
    for _ in range(2000):
        letter = state(pid)
        if letter in ("", "Z", "X"):
            return
        if letter == "T":
            break
        time.sleep(0.0005)  # between its datagram and its SIGSTOP there is nothing that could be waited for
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def identities(pids: Iterable[int]) -> list[tuple[int, int]]:
    """Return each live process with its start time: pids are used again within minutes here."""
    found = ((pid, _stat(pid)) for pid in pids)
    return [(pid, int(fields[_START])) for pid, fields in found if fields and fields[0] not in "ZX"]


def wait_gone(those: list[tuple[int, int]], patience: float) -> list[int]:
    """Wait until all of these :func:`identities` are gone; return those that are not after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while left := [pid for pid, start in those if (pid, start) in identities([pid])]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


def _stat(pid: int) -> list[str]:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # several hundred a kill: pathlib would take most of it
    except OSError:
        return []
    try:
        return os.read(descriptor, 512).decode(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    finally:
        os.close(descriptor)
