"""A shard of its own for ``sidestream bench``, on a server that others use: taken, measured, and left as it was found.

Nothing outside :data:`PREFIX` is written, and whatever is in it is removed before and after. The only other thing that
a bench may leave in a server is the function library, which it takes along when the server did not have it before.
"""

from __future__ import annotations

import secrets
from typing import Any

from sidestream.broker.redis.connection import RedisConnection
from sidestream.broker.redis.functions import library
from sidestream.broker.redis.inspect import RedisInspector
from sidestream.broker.redis.probe import information, probe
from sidestream.errors import BenchRefused, BrokerUnsuitable

PREFIX = "sidestream:{bench}:"
"""What every key of a bench begins with."""
TAKEN_MS = 120_000
"""Milliseconds for which a bench that was killed keeps others out; one takes under a minute."""
ROOM = 64 * 2**20
"""Bytes that must be left below ``maxmemory``: several times what a bench fills."""
_SCANNED = 1000
_TAKEN = b"running"
_LIBRARY = library().prefix.rstrip("_")


class Scratch:
    """The shard, from :meth:`take` to :meth:`leave`."""

    def __init__(self, connection: RedisConnection) -> None:
        """Prepare; nothing is asked yet."""
        self._run = connection.run
        self._connection = connection
        self._token: bytes | None = None
        self._had_library = True

    def look(self) -> str | None:
        """Return in words what the shard of the real jobs has to do at this moment; None: nothing.

        Raises a :class:`~sidestream.errors.BrokerError` when the server cannot be used.
        """
        probe(self._connection)
        self._had_library = self._has_library()
        seen = RedisInspector(self._connection).overview()
        held = sum(depth.handed_off for depth in seen.lanes)
        ready = sum(depth.ready for depth in seen.lanes)
        if not held and not ready:
            return None
        return f"{ready:,} jobs are ready and {held:,} are in the hands of workers"

    def take(self) -> None:
        """Take the shard, once looked at, and empty it of what a killed bench left.

        Raises:
            BenchRefused: Another bench has it, or the server is short of memory.
            BrokerError: The server cannot be used.
        """
        told = information(self._connection, "memory")
        most, used = int(told.get("maxmemory", 0)), int(told.get("used_memory", 0))
        if most and most - used < ROOM:
            raise BenchRefused(
                f"Redis at {self._connection.url} has {(most - used) / 2**20:.0f} MiB left below its maxmemory; "
                f"expected at least {ROOM // 2**20}, so that real jobs keep their room; raise maxmemory or free some."
            )
        self._run("SCAN", 0, "MATCH", f"{PREFIX}*", "COUNT", 1)  # who may not remove keys is told before he leaves some
        self._run("UNLINK", f"{PREFIX}none")
        token = secrets.token_hex(8).encode()
        if self._run("SET", f"{PREFIX}running", token, "NX", "PX", TAKEN_MS) is None:
            raise BenchRefused(
                f"Another sidestream bench is using Redis at {self._connection.url}, or was killed there less than "
                f"{TAKEN_MS // 60_000} minutes ago; try again later."
            )
        self._token = token
        self._empty()

    def ping(self) -> None:
        """One round trip."""
        self._run("PING")

    def describe(self) -> str:
        """Return the server's name, version and durability in words."""
        told = information(self._connection, "server", "persistence")
        name = f"Valkey {told['valkey_version']}" if "valkey_version" in told else f"Redis {told.get('redis_version')}"
        durable = "with an append-only file" if told.get("aof_enabled") == "1" else "without an append-only file"
        return f"{name} {durable}, {self._connection.url}"

    def leave(self) -> None:
        """Remove everything, and give the shard free; harmless when it was not taken."""
        token, self._token = self._token, None
        if token is None or self._run("GET", f"{PREFIX}running") not in (token, None):
            return
        try:
            self._empty()
            if not self._had_library and self._has_library() and not RedisInspector(self._connection).workers():
                self._run("FUNCTION", "DELETE", _LIBRARY)
        finally:
            self._run("UNLINK", f"{PREFIX}running")

    def _has_library(self) -> bool:
        try:
            return bool(self._run("FUNCTION", "LIST", "LIBRARYNAME", _LIBRARY))
        except BrokerUnsuitable:
            return True  # a user without the right to look has none to remove it either

    def _empty(self) -> None:
        cursor: Any = 0
        while True:
            cursor, found = self._run("SCAN", cursor, "MATCH", f"{PREFIX}*", "COUNT", _SCANNED)
            names = [name for name in found if not name.endswith(_TAKEN)]
            if names:
                self._run("UNLINK", *names)
            if not int(cursor):
                return
