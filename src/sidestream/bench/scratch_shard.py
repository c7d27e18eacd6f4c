"""Use a separate Redis shard for ``sidestream bench``, on a server that real jobs use.

The benchmark writes only keys with :data:`PREFIX`, and removes them before and after. It also removes the function
library at the end, if the server did not have it before and no worker uses it.
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
"""Prefix of every key of a benchmark."""
TAKEN_MS = 120_000
"""Milliseconds for which a killed benchmark blocks others; a benchmark takes under a minute."""
HEADROOM = 64 * 2**20
"""Bytes that must be free below ``maxmemory``: several times what a benchmark uses."""
_SCANNED = 1000
_TAKEN = b"running"
_LIBRARY = library().prefix.rstrip("_")


class ScratchShard:
    """The shard, from :meth:`acquire` to :meth:`release`."""

    def __init__(self, connection: RedisConnection) -> None:
        """Prepare the shard without a request to the server."""
        self._run = connection.run
        self._connection = connection
        self._token: bytes | None = None
        self._had_library = True

    def busy(self) -> str | None:
        """Return a text about the real jobs that are ready or leased; None when there are none.

        Raises a :class:`~sidestream.errors.BrokerError` when the server cannot be used.
        """
        probe(self._connection)
        self._had_library = self._has_library()
        lanes = RedisInspector(self._connection).lanes()
        held, ready = sum(depth.leased for depth in lanes), sum(depth.ready for depth in lanes)
        if not held and not ready:
            return None
        return f"{ready:,} jobs are ready and {held:,} are leased to workers"

    def acquire(self) -> None:
        """Acquire the shard after :meth:`busy`, and remove what a killed benchmark left in it.

        Raises:
            BenchRefused: Another benchmark has it, or the server is short of memory.
            BrokerError: The server cannot be used.
        """
        info = information(self._connection, "memory")
        most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
        if most and most - used < HEADROOM:
            raise BenchRefused(
                f"Redis at {self._connection.url} has {(most - used) / 2**20:.0f} MiB free below its maxmemory; "
                f"expected at least {HEADROOM // 2**20}, to spare real jobs; raise maxmemory or free memory."
            )
        self._run("SCAN", 0, "MATCH", f"{PREFIX}*", "COUNT", 1)  # fail before writing if this user may not remove keys
        self._run("UNLINK", f"{PREFIX}none")
        token = secrets.token_hex(8).encode()
        if self._run("SET", f"{PREFIX}running", token, "NX", "PX", TAKEN_MS) is None:
            raise BenchRefused(
                f"Another benchmark is using Redis at {self._connection.url}, or was killed there less than "
                f"{TAKEN_MS // 60_000} minutes ago; try again later."
            )
        self._token = token
        self._empty()

    def ping(self) -> None:
        """Make one round trip."""
        self._run("PING")

    def describe(self) -> str:
        """Return the server's name, version and durability as text."""
        info = information(self._connection, "server", "persistence")
        name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version')}"
        durable = "with an append-only file" if info.get("aof_enabled") == "1" else "without an append-only file"
        return f"{name} {durable}, {self._connection.url}"

    def release(self) -> None:
        """Remove everything and release the shard; do nothing if it was not acquired."""
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
            return True  # a user who may not list libraries may not delete one either

    def _empty(self) -> None:
        cursor: Any = 0
        while True:
            cursor, found = self._run("SCAN", cursor, "MATCH", f"{PREFIX}*", "COUNT", _SCANNED)
            names = [name for name in found if not name.endswith(_TAKEN)]
            if names:
                self._run("UNLINK", *names)
            if not int(cursor):
                return
