"""Record how often and when each job ran, in a file that the benchmark and the children map.

A record takes about a microsecond and no server, so it does not distort the measurement.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

_TIME = struct.Struct("<d")
_RECORD_SIZE = 1 + _TIME.size
_POLL = 0.005
"""Seconds between two reads of the counts; a signal would slow the children down."""


class Ledger:
    """The counts and times of ``size`` jobs, numbered from 0."""

    def __init__(self, path: Path) -> None:
        """Map the file at ``path``, which :meth:`create` has created."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self.path = path
        self.size = len(self._map) // _RECORD_SIZE

    @classmethod
    def create(cls, path: Path, size: int) -> Ledger:
        """Create an empty ledger that the worker's user may write."""
        path.write_bytes(bytes(_RECORD_SIZE * size))
        path.chmod(0o666)
        return cls(path)

    def record(self, number: int) -> None:
        """Record that job ``number`` runs now."""
        now = time.time()
        self._map[number] = min(255, self._map[number] + 1)
        _TIME.pack_into(self._map, self.size + _TIME.size * number, now)

    def ran(self, numbers: range) -> int:
        """Return how many of ``numbers`` ran at least once."""
        return len(numbers) - self._map[numbers.start : numbers.stop].count(0)

    def doubled(self, numbers: range) -> int:
        """Return how many of ``numbers`` ran more than once."""
        counts = self._map[numbers.start : numbers.stop]
        return len(numbers) - counts.count(0) - counts.count(1)

    def at(self, number: int) -> float:
        """Return the Unix time of the last run of job ``number``; 0 if it has not run."""
        return float(_TIME.unpack_from(self._map, self.size + _TIME.size * number)[0])

    def wait(self, numbers: range, seconds: float, check: Callable[[], None]) -> int:
        """Wait up to ``seconds`` for ``numbers``; return how many ran. ``check`` may raise."""
        until = time.monotonic() + seconds
        while (done := self.ran(numbers)) < len(numbers) and time.monotonic() < until:
            check()
            time.sleep(_POLL)
        return done
