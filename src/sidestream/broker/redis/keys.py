"""Name the Redis keys that Python reads: one function per key, with the shard's prefix.

The Redis functions build the same names in ``lua/shared/``. ``docs/reference/keys.md`` describes all keys.
"""

from __future__ import annotations

PREFIX = "sidestream:{s0}:"
"""The prefix of the first shard. The hash tag between the braces keeps all keys of a shard in one Cluster slot."""


def lanes(prefix: str) -> str:
    """HASH lane -> the number that other keys contain instead of it."""
    return f"{prefix}lanes"


def schedule(prefix: str, pool: str) -> str:
    """ZSET flow -> priority x 2^40 + virtual time of its group: the flows that a pool serves."""
    return f"{prefix}schedule:{pool}"


def flow(prefix: str, pool: str, flow: bytes) -> bytes:
    """ZSET member -> first-ready time in ms. The pool of the ready jobs of lane 3 is ``r3``."""
    return f"{prefix}flow:{pool}:".encode() + flow


def singletons(prefix: str, pool: str) -> str:
    """HASH flow -> first-ready time in ms and member, for flows with one job."""
    return f"{prefix}singletons:{pool}"


def leased(prefix: str, lane: str) -> str:
    """ZSET reference -> ms of its last claim or renewal, for the leased jobs of a lane."""
    return f"{prefix}leased:{lane}"


def handoff(prefix: str, worker: str) -> str:
    """LIST of the jobs that were handed to an idle worker and not read yet."""
    return f"{prefix}handoff:{worker}"


def workers(prefix: str) -> str:
    """ZSET worker -> the ms at which its announcement expires."""
    return f"{prefix}workers"


def info(prefix: str) -> str:
    """HASH worker -> its lanes, and a line of JSON for people."""
    return f"{prefix}info"


def direct(prefix: str) -> str:
    """HASH uuid (16 bytes) -> the signed bytes of a direct job."""
    return f"{prefix}direct"


def failed(prefix: str) -> str:
    """HASH uuid (16 bytes) -> MessagePack of a failed direct job."""
    return f"{prefix}failed"
