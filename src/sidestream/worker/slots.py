"""One shared memory slot a child: what it runs right now, exactly, without a system call, readable after its death.

The file lives in the supervisor's run folder, so that the next supervisor on this host can read it after a crash.

Layout of a slot (little endian, 128 bytes)::

    0  u32  position     index in its batch of the job that runs or ran last     written by the child
    4  u32  running      1 while that job runs
    8  f64  started      CLOCK_MONOTONIC seconds
    16 u32  backend      pid of its PostgreSQL backend, 0 when it has none
    20 u32  attempts     attempts + 1 that its row had when it was acquired, 0 when it is not acquired
    24 u32  limit        the child starts no job at or past this index           written by the supervisor
    28 u32  batch        number of the batch
    32 u8   length       of the reference that runs
    33 ...  reference    up to 64 bytes
    100 u32 guard        pid of the PostgreSQL backend that holds its keys, where that is another one

Whatever belongs together is one aligned copy of at most 16 bytes, which the processor carries out as a whole (64-bit
x86; others at least each half): the other side, and whoever reads after a kill, finds the old or the new one.
(``struct.pack_into`` fills the place with zeros first, and a job that was started "at 0" seems to have run for as long
as the machine.)
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
"""Most times that a slot is read until two times agree; a child starts a job every few dozen reads at most."""


class Reading(NamedTuple):
    """What a slot says."""

    position: int
    running: bool
    started: float
    backend: int
    #: The row's attempts when the running job was acquired; -1 when it is not acquired.
    attempts_seen: int
    limit: int
    batch: int
    #: The reference of the job that runs or ran last; empty before the first one.
    reference: bytes
    #: Pid of a second backend, which holds the job's keys; 0 when it has none.
    guard: int = 0


class Slots:
    """All slots of one supervisor over one shared mapping."""

    def __init__(self, descriptor: int, count: int) -> None:
        self.count = count
        self._map = mmap.mmap(descriptor, SLOT * count, mmap.MAP_SHARED)

    @classmethod
    def create(cls, path: Path, count: int) -> tuple[Slots, int]:
        """Make the file with ``count`` empty slots; return them and the open descriptor to pass on."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(descriptor, SLOT * count)
        return cls(descriptor, count), descriptor

    @classmethod
    def dead_workers(cls, path: Path) -> list[Reading]:
        """Return what the slots of a supervisor that has died say; empty when it made none."""
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
        """The child starts the job at ``position``."""
        at = slot * SLOT
        # The reference first, the running mark last: a kill in between leaves the slot saying "not running".
        length = len(reference) & 0x3F
        self._map[at + 32 : at + 33 + length] = bytes((length,)) + reference[:length]
        self._write(at + 20, 0)
        self._map[at : at + 16] = _HEAD.pack(position, 1, started)

    def acquired(self, slot: int, attempts: int) -> None:
        """The running job's row was acquired and had that many attempts."""
        self._write(slot * SLOT + 20, attempts + 1)

    def stop(self, slot: int) -> None:
        """The running job ended."""
        self._write(slot * SLOT + 4, 0)

    def backend(self, slot: int, pid: int) -> None:
        """The child's PostgreSQL backend is ``pid`` (0: none)."""
        self._write(slot * SLOT + 16, pid)

    def guard(self, slot: int, pid: int) -> None:
        """The child's keys are held by the PostgreSQL backend ``pid`` (0: by none, or by the one above)."""
        self._write(slot * SLOT + GUARD, pid)

    def limit(self, slot: int) -> int:
        """Return the index from which on no job may be started."""
        return self._word(slot * SLOT + 24)

    # The supervisor's side.

    def assign(self, slot: int, batch: int, size: int) -> None:
        """A batch of ``size`` jobs is about to be sent."""
        at = slot * SLOT
        self._map[at : at + 16] = _HEAD.pack(0, 0, 0.0)
        self._map[at + 24 : at + 32] = _ASSIGNED.pack(size, batch)

    def recall(self, slot: int) -> None:
        """Ask the child to start nothing after the job that runs now."""
        at = slot * SLOT
        self._write(at + 24, self._word(at) + 1)

    def clear(self, slot: int) -> None:
        """A new child gets this slot."""
        self._map[slot * SLOT : (slot + 1) * SLOT] = bytes(SLOT)

    def read(self, slot: int) -> Reading:
        """Return what the slot says now: of one job, also while the child goes from one to the next."""
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
        """Unmap; the file stays until its folder is removed."""
        self._map.close()
