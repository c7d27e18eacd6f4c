"""Which job ran how often, and when: a count and a time for each, in a file that bench and children map.

Writing to it takes about a microsecond and no server, so it does not slow what is measured.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

_TIME = struct.Struct("<d")
_A_JOB = 1 + _TIME.size
_LOOK_EVERY = 0.005
"""Seconds between two looks at the counts, which nobody can signal without slowing the children."""


class Ledger:
    """The ledger of ``size`` jobs, numbered from 0."""

    def __init__(self, path: Path) -> None:
        """Map the file at ``path``, which :meth:`create` made."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self.path = path
        self.size = len(self._map) // _A_JOB

    @classmethod
    def create(cls, path: Path, size: int) -> Ledger:
        """Make an empty ledger that the worker's user may write."""
        path.write_bytes(bytes(_A_JOB * size))
        path.chmod(0o666)
        return cls(path)

    def hit(self, number: int) -> None:
        """Job ``number`` runs now."""
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
        """Return the Unix time at which job ``number`` ran last; 0 when it did not."""
        return float(_TIME.unpack_from(self._map, self.size + _TIME.size * number)[0])

    def wait(self, numbers: range, seconds: float, check: Callable[[], None]) -> int:
        """Return how many of ``numbers`` ran, once all did or ``seconds`` passed; ``check`` may raise meanwhile."""
        until = time.monotonic() + seconds
        while (done := self.ran(numbers)) < len(numbers) and time.monotonic() < until:
            check()
            time.sleep(_LOOK_EVERY)
        return done
