"""Read what pages and commands show of one shard, with bounded reads and no writes.

The figures come from several commands, so they may differ by a few jobs while workers run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sidestream.broker.redis import keys
from sidestream.broker.redis.connection import RedisConnection
from sidestream.job.job import LOWEST_PRIORITY

MOST_FLOWS = 1000
"""Most flows of a lane whose ready jobs are counted."""


class LaneDepth(NamedTuple):
    """The number of jobs of a lane in each place."""

    lane: str
    #: Claimable now, without paused groups.
    ready: int
    #: Due later, or waiting for a retry.
    delayed: int
    #: Leased to workers, whether or not they have read them.
    leased: int


class AnnouncedWorker(NamedTuple):
    """A worker that is announced."""

    worker: str
    lanes: tuple[str, ...]
    #: JSON, as it announced it.
    info: str
    #: Unix milliseconds at which the announcement expires.
    until_ms: int


@dataclass(frozen=True, slots=True)
class Overview:
    """One shard at a glance."""

    lanes: tuple[LaneDepth, ...]
    workers: tuple[AnnouncedWorker, ...]
    #: Pending direct jobs.
    direct: int
    #: Direct jobs that failed.
    failed: int
    #: Foreign or truncated entries found in our keys so far.
    quarantine: int


class RedisInspector:
    """Reads one shard through the connection of its broker."""

    def __init__(self, connection: RedisConnection, prefix: str = keys.PREFIX) -> None:
        """Read the shard of ``prefix``; every method may raise a BrokerError."""
        self._connection = connection
        self._prefix = prefix

    def overview(self) -> Overview:
        """Return the depth of every lane, the workers, and counts of unusual entries."""
        run, prefix = self._connection.run, self._prefix
        lanes = _pairs(run("HGETALL", keys.lanes(prefix)))
        return Overview(
            lanes=tuple(self._depth(name.decode(), number.decode()) for name, number in sorted(lanes.items())),
            workers=self.workers(),
            direct=run("HLEN", keys.direct(prefix)),
            failed=run("HLEN", keys.failed(prefix)),
            quarantine=int(run("HGET", keys.meta(prefix), "quarantine") or 0),
        )

    def workers(self) -> tuple[AnnouncedWorker, ...]:
        """Return the announced workers, by name; an expired announcement stays for a while, with its time."""
        announced = _pairs(self._connection.run("HGETALL", keys.info(self._prefix)))
        found = []
        for worker, until in _pairs(
            self._connection.run("ZRANGE", keys.workers(self._prefix), 0, -1, "WITHSCORES")
        ).items():
            lanes, _, info = announced.get(worker, b"\n").decode(errors="replace").partition("\n")
            name = worker.decode(errors="replace")
            found.append(AnnouncedWorker(name, tuple(lanes.split()), info, int(float(until))))
        return tuple(sorted(found))

    def quarantine(self, count: int = 100) -> list[bytes]:
        """Return the last ``count`` foreign entries in quarantine."""
        found: list[bytes] = self._connection.run("LRANGE", keys.quarantine(self._prefix), 0, count - 1)
        return found

    def _depth(self, lane: str, number: str) -> LaneDepth:
        run, prefix = self._connection.run, self._prefix
        pool = f"r{number}"
        flows = run("ZRANGE", keys.schedule(prefix, pool), 0, MOST_FLOWS - 1)
        single = run("HMGET", keys.singletons(prefix, pool), *flows) if flows else []
        ready = sum(
            1 if only is not None else run("ZCARD", keys.flow(prefix, pool, flow))
            for flow, only in zip(flows, single, strict=True)
        )
        delayed = sum(run("ZCARD", keys.delayed(prefix, number, priority)) for priority in range(LOWEST_PRIORITY + 1))
        return LaneDepth(lane, ready, delayed, run("ZCARD", keys.leased(prefix, lane)))


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
