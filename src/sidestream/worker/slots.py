"""Share in memory what each child runs right now, readable after the child's death.

A child writes its slot without a system call. The file is in the worker's run folder, so that the next worker on this
host can read it after a crash.

Layout of a slot (little endian, 128 bytes)::

    0  u32  position     index in the batch of the job that runs or ran last     written by the child
    4  u32  running      1 while that job runs
    8  f64  started      CLOCK_MONOTONIC seconds
    16 u32  backend      pid of the child's PostgreSQL backend, 0 without one
    20 u32  attempts     attempts + 1 of the row when it was acquired, 0 before that
    24 u32  limit        the child starts no job from this index on              written by the supervisor
    28 u32  batch        number of the batch
    32 u8   length       of the reference
    33 ...  reference    up to 64 bytes
    100 u32 guard        pid of the PostgreSQL backend that holds its keys, if that is another one

Fields that belong together are written in one aligned copy of at most 16 bytes. A 64-bit x86 processor does that
atomically, and others at least in halves, so a reader finds the old or the new fields. (``struct.pack_into`` fills its
target with zeros first. A reader then finds a job that was started "at 0" and seems to have run since the boot.)
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

SLOT = 128
GUARD = 100
_HEAD = struct.Struct("<IId")
_WORD = struct.Struct("<I")
_ASSIGNED = struct.Struct("<II")
_ALL = struct.Struct("<IIdIIIIB")
READS = 100
"""Maximum number of reads until two agree; a child starts a job every few dozen reads at most."""


class Reading(NamedTuple):
    """The contents of a slot."""

    position: int
    running: bool
    started: float
    backend: int
    #: The row's attempts when the running job was acquired; -1 before that.
    attempts_seen: int
    limit: int
    batch: int
    #: The reference of the job that runs or ran last; empty before the first one.
    reference: bytes
    #: Pid of a second backend, which holds the job's keys; 0 without one.
    guard: int = 0


class Slots:
    """All slots of one worker, in one shared mapping."""

    def __init__(self, descriptor: int, count: int) -> None:
        self.count = count
        self._map = mmap.mmap(descriptor, SLOT * count, mmap.MAP_SHARED)

    @classmethod
    def create(cls, path: Path, count: int) -> tuple[Slots, int]:
        """Create the file with ``count`` empty slots; return them and its open descriptor."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(descriptor, SLOT * count)
        return cls(descriptor, count), descriptor

    @classmethod
    def dead_workers(cls, path: Path) -> list[Reading]:
        """Return the contents of a dead worker's slots; empty if the file does not exist."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return []
        try:
            count = os.fstat(descriptor).st_size // SLOT
            if not count:
                return []
            slots = cls(descriptor, count)
            return [slots.read(number) for number in range(count)]
        finally:
            os.close(descriptor)

    # The child's side.

    def start(self, slot: int, position: int, started: float, reference: bytes) -> None:
        """Record that the child starts the job at ``position``."""
        at = slot * SLOT
        # The reference first, the running mark last, so that a kill in between leaves the slot "not running".
        length = len(reference) & 0x3F
        self._map[at + 32 : at + 33 + length] = bytes((length,)) + reference[:length]
        self._write(at + 20, 0)
        self._map[at : at + 16] = _HEAD.pack(position, 1, started)

    def acquired(self, slot: int, attempts: int) -> None:
        """Record that the running job's row was acquired and had ``attempts``."""
        self._write(slot * SLOT + 20, attempts + 1)

    def stop(self, slot: int) -> None:
        """Record that the running job has ended."""
        self._write(slot * SLOT + 4, 0)

    def backend(self, slot: int, pid: int) -> None:
        """Record the pid of the child's PostgreSQL backend (0: none)."""
        self._write(slot * SLOT + 16, pid)

    def guard(self, slot: int, pid: int) -> None:
        """Record the pid of a second backend, which holds the child's keys (0: none)."""
        self._write(slot * SLOT + GUARD, pid)

    def limit(self, slot: int) -> int:
        """Return the index from which the child may not start a job."""
        return self._word(slot * SLOT + 24)

    # The supervisor's side.

    def assign(self, slot: int, batch: int, size: int) -> None:
        """Prepare the slot for a batch of ``size`` jobs that is about to be sent."""
        at = slot * SLOT
        self._map[at : at + 16] = _HEAD.pack(0, 0, 0.0)
        self._map[at + 24 : at + 32] = _ASSIGNED.pack(size, batch)

    def recall(self, slot: int) -> None:
        """Tell the child to start no job after the running one."""
        at = slot * SLOT
        self._write(at + 24, self._word(at) + 1)

    def clear(self, slot: int) -> None:
        """Empty the slot for a new child."""
        self._map[slot * SLOT : (slot + 1) * SLOT] = bytes(SLOT)

    def read(self, slot: int) -> Reading:
        """Return the contents, of one job even while the child starts the next one."""
        at = slot * SLOT
        copy = self._map[at : at + SLOT]
        for _ in range(READS):
            again = self._map[at : at + SLOT]
            if again == copy:
                break
            copy = again
        position, running, started, backend, attempts, limit, batch, length = _ALL.unpack_from(copy)
        (guard,) = _WORD.unpack_from(copy, GUARD)
        reference = copy[33 : 33 + length]
        return Reading(position, bool(running), started, backend, attempts - 1, limit, batch, reference, guard)

    def _write(self, at: int, word: int) -> None:
        self._map[at : at + 4] = _WORD.pack(word)

    def _word(self, at: int) -> int:
        return int(_WORD.unpack(self._map[at : at + 4])[0])

    def close(self) -> None:
        """Unmap the file, which stays until its folder is removed."""
        self._map.close()
