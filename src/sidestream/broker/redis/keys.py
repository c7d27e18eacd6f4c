"""Every key that Sidestream keeps in Redis: one function a key, all below the shard's tagged prefix.

The functions build the same names from ``KEYS[1]`` (``lua/shared/core.lua``); ``docs/reference/keys.md`` is the table.
"""

from __future__ import annotations

PREFIX = "sidestream:{s0}:"
"""The first shard. All keys of a shard share the hash tag between the braces, so they live in one Cluster slot."""


def meta(prefix: str) -> str:
    """HASH: gen, format, last, gap, quarantine, synced:<database>."""
    return f"{prefix}meta"


def lanes(prefix: str) -> str:
    """HASH lane -> the number that stands for it in other keys: every lane that was ever served or filled."""
    return f"{prefix}lanes"


def lanes_of(prefix: str, database: str) -> str:
    """SET of the lanes of a database (16 hex digits)."""
    return f"{prefix}lanes:{database}"


def schedule(prefix: str, pool: str) -> str:
    """ZSET flow (priority, group tag) -> priority x 2^40 + the group's virtual time: bins of a pool that are served."""
    return f"{prefix}schedule:{pool}"


def flow(prefix: str, pool: str, flow: bytes) -> bytes:
    """ZSET member -> first-ready time in ms; the pool of ready jobs of lane number 3 is ``r3``."""
    return f"{prefix}flow:{pool}:".encode() + flow


def singletons(prefix: str, pool: str) -> str:
    """HASH flow -> first-ready time in ms and the member: flows with one job beside others (``shared/pool.lua``)."""
    return f"{prefix}singletons:{pool}"


def delayed(prefix: str, lane_number: str, priority: int) -> str:
    """ZSET reference -> due time in ms."""
    return f"{prefix}delayed:{lane_number}:{priority}"


def rules(prefix: str) -> str:
    """HASH database (16 hex digits) -> its rules, MessagePack; their versions stand in meta."""
    return f"{prefix}rules"


def slots(prefix: str, database: str, limit: str) -> str:
    """SET of the references that count against a limit now."""
    return f"{prefix}slots:{database}:{limit}"


def buckets(prefix: str) -> str:
    """HASH database:limit -> tokens, and the ms at which they were counted."""
    return f"{prefix}buckets"


def refills(prefix: str) -> str:
    """ZSET database:limit -> ms at which its bucket is full again and is forgotten."""
    return f"{prefix}refills"


def timers(prefix: str) -> str:
    """ZSET parked pool or task -> ms at which it is looked at."""
    return f"{prefix}timers"


def lane_clock(prefix: str) -> str:
    """HASH lane -> its virtual time, and whose turn it is between aged and urgent jobs of a pool."""
    return f"{prefix}lane_clock"


def worker_actions(prefix: str) -> str:
    """HASH worker -> digest of the actions that it knows; ``knows:<digest>`` is the SET of their tags."""
    return f"{prefix}worker_actions"


def parked(prefix: str) -> str:
    """SET of the pools of limited and paused jobs that are not empty."""
    return f"{prefix}parked"


def unrouted(prefix: str) -> str:
    """SET of the pools of jobs whose action nobody knew who met them."""
    return f"{prefix}unrouted"


def behind(prefix: str) -> str:
    """HASH lane -> how many of its jobs stand behind another one with the same key."""
    return f"{prefix}behind"


def leased(prefix: str, lane: str) -> str:
    """ZSET reference -> ms of its last claim or renewal: the jobs of a lane that are handed off."""
    return f"{prefix}leased:{lane}"


def handoff(prefix: str, worker: str) -> str:
    """LIST of what was handed to a reader that blocks, until it is read."""
    return f"{prefix}handoff:{worker}"


def idle(prefix: str, lane: str) -> str:
    """ZSET worker -> until_ms: the readers of a lane that wait for jobs."""
    return f"{prefix}idle:{lane}"


def workers(prefix: str) -> str:
    """ZSET worker -> until_ms: who announced to be alive."""
    return f"{prefix}workers"


def info(prefix: str) -> str:
    """HASH worker -> what it announced: its lanes, and a line for people."""
    return f"{prefix}info"


def tasks(prefix: str) -> str:
    """HASH task -> until_ms and the worker that does it for all."""
    return f"{prefix}tasks"


def direct(prefix: str) -> str:
    """HASH uuid (16 bytes) -> the signed bytes of a direct job."""
    return f"{prefix}direct"


def failed(prefix: str) -> str:
    """HASH uuid (16 bytes) -> MessagePack of a failed direct job."""
    return f"{prefix}failed"


def quarantine(prefix: str) -> str:
    """LIST of the last 1000 foreign or truncated entries that were found in our keys."""
    return f"{prefix}quarantine"
