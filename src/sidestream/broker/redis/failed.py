"""Direct jobs that failed: listed, acquired again, forgotten. Of rows, PostgreSQL knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgpack

from sidestream.broker.redis import keys
from sidestream.broker.redis.broker import RedisBroker
from sidestream.errors import WireError
from sidestream.job.codec import peek
from sidestream.job.job import Job

PAGE = 500
"""Jobs of one look."""


class FailedDirectJob(NamedTuple):
    """A direct job that failed."""

    uuid: UUID
    queue: str
    #: As its signed bytes say; the signature was not looked at, so this is for people and nothing runs by it.
    #: None: they cannot be read, which may be what it died of.
    job: Job | None
    error: str
    #: Unix milliseconds.
    at_ms: int
    attempts: int
    crashes: int


class FailedDirectJobs:
    """The failed direct jobs of one shard."""

    def __init__(self, broker: RedisBroker) -> None:
        """Look through ``broker``, which knows its generation; every method may raise a BrokerError."""
        self._broker = broker

    def __iter__(self) -> Iterator[FailedDirectJob]:
        """Give each of them, a page at a time, in no order; one that is changed meanwhile may be given twice or not."""
        cursor = 0
        while True:
            cursor, flat = self._broker.connection.run("HSCAN", keys.failed(self._broker.prefix), cursor, "COUNT", PAGE)
            cursor = int(cursor)
            for uuid, packed in zip(flat[::2], flat[1::2], strict=True):
                yield _read(uuid, packed)
            if not cursor:
                return

    def get(self, uuid: UUID) -> FailedDirectJob | None:
        """Return one of them; None when it is not among them."""
        packed = self._broker.connection.run("HGET", keys.failed(self._broker.prefix), uuid.bytes)
        return None if packed is None else _read(uuid.bytes, packed)

    def retry_failed(self, uuids: Sequence[UUID]) -> int:
        """Open a few hundred again, due now, their failures forgiven; return how many were among the dead."""
        return self._broker.retry_failed([one.bytes for one in uuids])

    def delete_failed(self, uuids: Sequence[UUID]) -> int:
        """Forget a few hundred; return how many were among the dead."""
        return self._broker.delete_failed([one.bytes for one in uuids])


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
