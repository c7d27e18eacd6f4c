"""The empty job of ``sidestream bench``, and the ledger in which it notes that it ran."""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from sidestream.executors.actions import Actions
from sidestream.executors.context import Context

ACTION = "bench.noop"
LEDGER = "BENCH_LEDGER"
"""Environment variable of the worker's processes: the ledger's path."""
_TIME = struct.Struct("<d")


class Ledger:
    """When each of so many jobs ran, and how often: a file that several processes map."""

    def __init__(self, path: Path) -> None:
        """Map the file that :meth:`create` made."""
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.path = path
        self.size = len(self._map) // 9

    @classmethod
    def create(cls, path: Path, size: int) -> Ledger:
        """Make an empty ledger for ``size`` jobs that the worker's user may write."""
        path.write_bytes(bytes(9 * size))
        path.chmod(0o666)
        return cls(path)

    def hit(self, number: int, at: float) -> None:
        """Job ``number`` ran at ``at`` (Unix seconds)."""
        self._map[number] = min(255, self._map[number] + 1)
        _TIME.pack_into(self._map, self.size + 8 * number, at)

    def ran(self, first: int, end: int) -> int:
        """How many of the jobs ``first`` to ``end - 1`` ran."""
        return end - first - self._map[first:end].count(0)

    def more_than_once(self) -> int:
        """How many jobs ran more than once."""
        return self.size - self._map[: self.size].count(0) - self._map[: self.size].count(1)

    def times(self, first: int, end: int) -> list[float]:
        """When each of these jobs ran, in Unix seconds."""
        return list(struct.unpack_from(f"<{end - first}d", self._map, self.size + 8 * first))


actions = Actions()
_ledger = Ledger(Path(os.environ[LEDGER])) if LEDGER in os.environ else None


@actions.action(ACTION, database=False)
def noop(_context: Context, number: int) -> None:
    """Note that it ran."""
    at = time.time()
    if _ledger is not None:
        _ledger.hit(number, at)
