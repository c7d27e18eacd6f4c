"""Read what pages and commands show of one shard, with bounded reads and no writes.

The figures come from several commands, so they may differ by a few jobs while workers run.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sidestream.broker.redis import keys
from sidestream.broker.redis.connection import RedisConnection

MOST_FLOWS = 1000
"""Most flows of a lane whose ready jobs are counted."""


class LaneDepth(NamedTuple):
    """How many jobs of a lane are ready or leased."""

    lane: str
    #: Claimable now, without paused groups.
    ready: int
    #: Leased to workers, whether or not they have read them.
    leased: int


class AnnouncedWorker(NamedTuple):
    """A worker that is announced."""

    worker: str
    lanes: tuple[str, ...]
    #: What it announced for people; empty if that cannot be read.
    info: dict[str, Any]
    #: Unix milliseconds at which the announcement expires.
    until_ms: int


class RedisInspector:
    """Reads one shard through the connection of its broker."""

    def __init__(self, connection: RedisConnection, prefix: str = keys.PREFIX) -> None:
        """Read the shard of ``prefix``; every method may raise a BrokerError."""
        self._connection = connection
        self._prefix = prefix

    def lanes(self) -> tuple[LaneDepth, ...]:
        """Return the depth of every lane, by name."""
        numbers = _pairs(self._connection.run("HGETALL", keys.lanes(self._prefix)))
        return tuple(self._depth(name.decode(), number.decode()) for name, number in sorted(numbers.items()))

    def workers(self) -> tuple[AnnouncedWorker, ...]:
        """Return the announced workers by name, including recently expired ones."""
        announced = _pairs(self._connection.run("HGETALL", keys.info(self._prefix)))
        found = []
        expiries = self._connection.run("ZRANGE", keys.workers(self._prefix), 0, -1, "WITHSCORES")
        for worker, until in _pairs(expiries).items():
            lanes, _, info = announced.get(worker, b"\n").decode(errors="replace").partition("\n")
            name = worker.decode(errors="replace")
            found.append(AnnouncedWorker(name, tuple(lanes.split()), _object(info), int(float(until))))
        return tuple(sorted(found, key=lambda one: one.worker))

    def _depth(self, lane: str, number: str) -> LaneDepth:
        run, prefix = self._connection.run, self._prefix
        pool = f"r{number}"
        flows = run("ZRANGE", keys.schedule(prefix, pool), 0, MOST_FLOWS - 1)
        single = run("HMGET", keys.singletons(prefix, pool), *flows) if flows else []
        ready = sum(
            1 if only is not None else run("ZCARD", keys.flow(prefix, pool, flow))
            for flow, only in zip(flows, single, strict=True)
        )
        return LaneDepth(lane, ready, run("ZCARD", keys.leased(prefix, lane)))


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
