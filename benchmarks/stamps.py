"""Record when each job ran: one count and one time per job, in a file that all processes map.

Writing it costs a microsecond and no server, so the same ledger serves every side of a comparison.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

_TIME = struct.Struct("<d")


class Stamps:
    """The ledger of ``size`` jobs; job ``i`` is anything from 0 to ``size - 1``."""

    def __init__(self, path: Path) -> None:
        """Map a file that :meth:`create` made."""
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0, mmap.MAP_SHARED)
        finally:
            os.close(descriptor)
        self.path = path
        self.size = len(self._map) // 9

    @classmethod
    def create(cls, path: Path, size: int) -> Stamps:
        """Make an empty ledger that a process of any user may write."""
        path.write_bytes(bytes(9 * size))
        path.chmod(0o666)
        return cls(path)

    def hit(self, number: int, at: float) -> None:
        """Job ``number`` ran at ``at``. (Two processes that hit one job in the same instant may count one.)"""
        self._map[number] = min(255, self._map[number] + 1)
        _TIME.pack_into(self._map, self.size + 8 * number, at)

    def clear(self) -> None:
        """Forget everything."""
        self._map[:] = bytes(len(self._map))

    def at(self, number: int) -> float:
        """When job ``number`` ran last; 0 when it did not."""
        return float(_TIME.unpack_from(self._map, self.size + 8 * number)[0])

    def count(self, upto: int | None = None) -> int:
        """How many of the first ``upto`` jobs ran at least once."""
        end = self.size if upto is None else upto
        return end - self._map[:end].count(0)

    def wait(
        self, upto: int, deadline: float, *, some: int | None = None, check: Callable[[], None] | None = None
    ) -> int:
        """Return how many of the first ``upto`` jobs ran, as soon as all (or ``some``) did.

        ``check`` is called meanwhile and may raise. Raises :class:`TimeoutError` after ``deadline`` seconds.
        """
        end = time.monotonic() + deadline
        wanted = upto if some is None else some
        while (done := self.count(upto)) < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"{wanted - done} of {wanted} jobs did not run within {deadline:.0f} s.")
            if check is not None:
                check()
            time.sleep(0.001 if wanted < upto else 0.02)
        return done

    def check(self, upto: int) -> None:
        """Raise :class:`AssertionError` unless each of the first ``upto`` jobs ran exactly once."""
        missing, repeated = self.exceptions(upto)
        if missing or repeated:
            raise AssertionError(f"{missing} of {upto} jobs did not run, {repeated} ran twice.")

    def exceptions(self, upto: int) -> tuple[int, int]:
        """Return how many of the first ``upto`` jobs did not run, and how many ran more than once."""
        counts = self._map[:upto]
        missing = counts.count(0)
        return missing, upto - missing - counts.count(1)

    def repeated(self, upto: int) -> list[int]:
        """Return which of the first ``upto`` jobs ran more than once."""
        return [number for number, count in enumerate(self._map[:upto]) if count > 1]

    def times(self, upto: int) -> list[float]:
        """Return when each of the first ``upto`` jobs ran."""
        return list(struct.unpack_from(f"<{upto}d", self._map, self.size))

    def rate(self, upto: int) -> float:
        """Return jobs a second between the first and the last stamp."""
        times = self.times(upto)
        return (upto - 1) / (max(times) - min(times))
