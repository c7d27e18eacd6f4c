"""Check once at startup that a server may be used, and refuse a wrong one with one sentence."""

from __future__ import annotations

from sidestream.broker.redis.connection import RedisConnection
from sidestream.errors import BrokerUnavailable, BrokerUnsuitable

FLOOR = (7, 0)
"""Oldest Redis whose commands we use; every Valkey has them."""


def probe(connection: RedisConnection) -> None:
    """Check that the server may be used.

    Raises:
        BrokerUnavailable: It does not answer, or is still loading its data.
        BrokerUnsuitable: It is too old, a replica, evicts keys, or does not allow what we need.
    """
    url, fields = connection.url, information(connection, "server", "persistence", "replication", "memory")
    version = fields.get("redis_version", "0")
    if "valkey_version" not in fields and _numbers(version) < FLOOR:
        raise BrokerUnsuitable(
            f"Redis at {url} has version {version}: expected 7.0 or newer, or any Valkey; upgrade it."
        )
    if fields.get("loading", "0") != "0":
        raise BrokerUnavailable(f"Redis at {url} is still loading its data; jobs wait until it is ready.")
    if fields.get("role") == "slave":
        raise BrokerUnsuitable(f"Redis at {url} is a replica: expected a primary; name its primary in redis_url.")
    policy = _eviction_policy(connection, fields)
    if policy != "noeviction":
        raise BrokerUnsuitable(
            f"Redis at {url} has maxmemory-policy {policy}, under which it throws jobs away: expected noeviction; "
            "set it with CONFIG SET maxmemory-policy noeviction, and in its configuration file."
        )


def information(connection: RedisConnection, *sections: str) -> dict[str, str]:
    """Return these sections of INFO as one dictionary."""
    text: bytes = connection.run("INFO", *sections)
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def _eviction_policy(connection: RedisConnection, fields: dict[str, str]) -> str:
    # If INFO does not show it (a hosted Redis may hide it), CONFIG does.
    if "maxmemory_policy" in fields:
        return fields["maxmemory_policy"]
    reply: list[bytes] = connection.run("CONFIG", "GET", "maxmemory-policy")
    return reply[1].decode() if len(reply) == 2 else "unknown"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
