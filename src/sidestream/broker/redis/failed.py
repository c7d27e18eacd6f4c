"""List failed direct jobs; failed rows are in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

import msgpack

from sidestream.broker.redis import keys
from sidestream.broker.redis.broker import RedisBroker
from sidestream.errors import WireError
from sidestream.job.codec import peek
from sidestream.job.job import Job

PAGE = 500
"""Jobs per HSCAN."""


class FailedDirectJob(NamedTuple):
    """A direct job that failed."""

    uuid: UUID
    queue: str
    #: From its signed bytes, without a check of the signature: for people only, nothing runs by it. None: the bytes
    #: cannot be read, which may be why it failed.
    job: Job | None
    error: str
    #: Unix milliseconds.
    at_ms: int
    attempts: int
    crashes: int


class FailedDirectJobs:
    """The failed direct jobs of one shard."""

    def __init__(self, broker: RedisBroker) -> None:
        """Read through ``broker``, which knows its generation; every method may raise a BrokerError."""
        self._broker = broker

    def __iter__(self) -> Iterator[FailedDirectJob]:
        """Yield each of them in no order; one that changes meanwhile may come twice or not at all."""
        cursor = 0
        while True:
            cursor, flat = self._broker.connection.run("HSCAN", keys.failed(self._broker.prefix), cursor, "COUNT", PAGE)
            cursor = int(cursor)
            for uuid, packed in zip(flat[::2], flat[1::2], strict=True):
                yield _read(uuid, packed)
            if not cursor:
                return

    def get(self, uuid: UUID) -> FailedDirectJob | None:
        """Return one of them; None if it is not there."""
        packed = self._broker.connection.run("HGET", keys.failed(self._broker.prefix), uuid.bytes)
        return None if packed is None else _read(uuid.bytes, packed)


def _read(uuid: bytes, packed: bytes) -> FailedDirectJob:
    kept: dict[bytes, Any] = msgpack.unpackb(packed, raw=True)
    try:
        job = peek(kept[b"payload"])
    except WireError:
        job = None
    return FailedDirectJob(
        UUID(bytes=uuid),
        kept[b"lane"].decode().partition(":")[2],
        job,
        kept[b"error"].decode(errors="replace"),
        int(kept[b"at"]),
        kept[b"attempts"],
        kept[b"crashes"],
    )
