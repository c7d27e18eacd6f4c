"""Every key that Sidestream keeps in Redis: one function a key, all below the shard's tagged prefix.

The functions build the same names from ``KEYS[1]`` (``lua/shared/core.lua``); ``docs/reference/keys.md`` is the table.
"""

from __future__ import annotations

PREFIX = "sidestream:{s0}:"
"""The first shard. All keys of a shard share the hash tag between the braces, so they live in one Cluster slot."""


def meta(prefix: str) -> str:
    """HASH: gen, last, gap, strange, built:<database>."""
    return f"{prefix}meta"


def lanes(prefix: str) -> str:
    """SET of lanes that ever held a job."""
    return f"{prefix}lanes"


def ready(prefix: str, lane: str) -> str:
    """ZSET reference -> first-ready time in ms."""
    return f"{prefix}ready:{lane}"


def delayed(prefix: str, lane: str) -> str:
    """ZSET reference -> due time in ms."""
    return f"{prefix}delayed:{lane}"


def behind(prefix: str) -> str:
    """HASH lane -> how many of its jobs stand behind another one with the same key."""
    return f"{prefix}behind"


def held(prefix: str, lane: str) -> str:
    """ZSET reference -> ms of its last claim or renewal: the jobs of a lane that are handed off."""
    return f"{prefix}held:{lane}"


def hand(prefix: str, consumer: str) -> str:
    """LIST of what was handed to a reader that blocks, until it is read."""
    return f"{prefix}hand:{consumer}"


def workers(prefix: str) -> str:
    """HASH consumer -> its announcement: until_ms, lanes, info, one a line."""
    return f"{prefix}workers"


def direct(prefix: str) -> str:
    """HASH uuid (16 bytes) -> the signed bytes of a direct job."""
    return f"{prefix}direct"


def dead(prefix: str) -> str:
    """HASH uuid (16 bytes) -> MessagePack of a buried direct job."""
    return f"{prefix}dead"


def strange(prefix: str) -> str:
    """LIST of the last 1000 foreign or truncated entries that were found in our keys."""
    return f"{prefix}strange"
