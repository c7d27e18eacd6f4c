"""Hold the jobs of the memory broker, each in one place, and move them between places."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sidestream.broker.limits import Gates, Limiter
from sidestream.broker.memory.pools import Flow, Pool, SortedSet, flow_of
from sidestream.broker.protocol import CHUNK, Lease, Place
from sidestream.job.names import tag
from sidestream.job.reference import NO_TAG8, Reference, group_tag
from sidestream.job.rules import Rules

Key = tuple[bytes, bool, bytes]
"""Database, whether of direct jobs, key tag."""
TICK_MS = 1000
"""Milliseconds by which the clock may go back unnoticed: a normal step of the time service."""


@dataclass(slots=True, eq=False)
class Job:
    """A job that has not ended."""

    reference: bytes
    named: Reference
    lane: str
    priority: int
    ready_ms: int
    #: When its row is due; 0 when that has passed or does not matter.
    due_ms: int
    payload: bytes | None
    place: Place = Place.NOWHERE
    #: The pool in which it is ready or parked; None in any other place.
    pool: Pool | None = None
    lease: Lease | None = None
    renewed_ms: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    deliveries: int = 0

    @property
    def key(self) -> Key | None:
        """Its ordering key, or None."""
        return (self.named.database, self.named.direct, self.named.key) if self.named.key != NO_TAG8 else None

    @property
    def rank(self) -> float:
        """Its rank among the jobs of its key; ties are ordered by the reference."""
        return self.ready_ms if self.named.direct else self.named.id

    @property
    def flow(self) -> Flow:
        """Its flow in any pool."""
        return flow_of(self.priority, self.named.group)

    @property
    def database(self) -> str:
        """The database whose rules apply to it."""
        return self.lane[:16]

    @property
    def queue(self) -> str:
        """The queue of its lane."""
        return self.lane[17:]


class Parked(Pool):
    """The jobs that are parked for one reason."""

    def __init__(self, name: str, place: Place, database: str, scope: str, sample: Job) -> None:
        """Create an empty pool; ``sample`` is its first job, and ``name`` orders pools due together."""
        super().__init__()
        self.name, self.place, self.database, self.scope, self.sample = name, place, database, scope, sample


class Governing:
    """The rules of a database, indexed by the tags in references, with the state of its limits."""

    def __init__(self, rules: Rules, limiter: Limiter) -> None:
        """Index ``rules``; ``limiter`` is kept when they change."""
        self.rules, self.limiter, self.gates = rules, limiter, Gates(rules)
        self.aging_ms = rules.aging * 1000
        self.queues = {pause.queue for pause in rules.pauses if pause.queue}
        self.actions = {tag(one.action, 4) for one in rules.pauses if one.action and one.group is None}
        self.groups = {group_tag(one.group) for one in rules.pauses if one.group and one.action is None}
        self.pairs = {(tag(one.action, 4), group_tag(one.group)) for one in rules.pauses if one.action and one.group}
        self.group_weights = {group_tag(name): weight for name, weight in rules.group_weights.items()}
        self.limited = bool(rules.limits)
        self.per_job = bool(self.limited or self.actions or self.pairs)


class Contents:
    """All jobs, each in one place. The caller holds the lock."""

    def __init__(self, now: Callable[[], int], first_token: int = 0) -> None:
        """Begin empty; ``now`` returns Unix ms, tokens continue after ``first_token``."""
        self.now = now
        self.number = 0
        self.tokens = first_token
        self.synced: set[str] = set()
        self.jobs: dict[bytes, Job] = {}
        self.failed: dict[bytes, tuple[Job, str]] = {}
        self.ready: defaultdict[str, Pool] = defaultdict(Pool)
        self.delayed: defaultdict[tuple[str, int], SortedSet] = defaultdict(SortedSet)
        self.parked: dict[str, Parked] = {}
        #: Names of parked pools by the ms at which they are due.
        self.timers = SortedSet()
        self.leased: defaultdict[str, set[bytes]] = defaultdict(set)
        self.rules: dict[str, Governing] = {}
        #: By worker: tags of the actions that it knows; a worker without an entry knows any.
        self.worker_actions: dict[str, frozenset[bytes]] = {}
        self.last_ms = self.gap_ms = 0
        self._published: dict[tuple[bytes, int], bytearray] = {}

    def place_at(self, job: Job, until_ms: int) -> None:
        """Delay a job until then, or make it ready if that time has passed."""
        if until_ms > self.now():
            job.place, job.pool = Place.DELAYED, None
            self.delayed[job.lane, job.priority].add(job.reference, until_ms)
        else:
            job.place, job.pool = Place.READY, self.ready[job.lane]
            job.pool.put(job.flow, job.reference, job.ready_ms)

    def park(self, job: Job, name: str, place: Place, scope: str) -> Parked:
        """Park a job in the pool ``name`` and return the pool."""
        pool = self.parked.get(name)
        if pool is None:
            pool = self.parked[name] = Parked(name, place, job.database, scope, job)
        job.place, job.pool = place, pool
        pool.put(job.flow, job.reference, job.ready_ms)
        return pool

    def unplace(self, job: Job) -> None:
        """Remove a job from where it is delayed, ready or parked."""
        if job.place is Place.DELAYED:
            self.delayed[job.lane, job.priority].remove(job.reference)
        elif job.pool is not None:
            job.pool.remove(job.flow, job.reference)
            if isinstance(job.pool, Parked) and not job.pool:
                self.forget_pool(job.pool)
        job.place, job.pool = Place.NOWHERE, None

    def reprioritize(self, job: Job, priority: int) -> None:
        """Give a waiting job another priority; it keeps its place and its time."""
        if job.place is Place.DELAYED:
            until = self.delayed[job.lane, job.priority].score(job.reference) or 0
            self.delayed[job.lane, job.priority].remove(job.reference)
            self.delayed[job.lane, priority].add(job.reference, until)
        elif job.pool is not None:
            job.pool.remove(job.flow, job.reference)
            job.priority = priority
            job.pool.put(job.flow, job.reference, job.ready_ms)
        job.priority = priority

    def forget_pool(self, pool: Parked) -> None:
        """Remove an empty parked pool and its timer."""
        self.parked.pop(pool.name, None)
        self.timers.remove(pool.name.encode())

    def due_ms(self, lane: str) -> int | None:
        """Return when the first delayed job of a lane is due; None if there is none."""
        firsts = [self.delayed[lane, priority].first() for priority in range(10)]
        return min((int(first[0]) for first in firsts if first), default=None)

    def mark_published(self, named: Reference, *, published: bool) -> bool:
        """Set or clear the published bit of a row and return its old value; a direct job has none."""
        if named.direct:
            return False
        chunk, bit = divmod(named.id, CHUNK)
        bits = self._published.setdefault((named.database, chunk), bytearray())
        byte, mask = bit // 8, 0x80 >> bit % 8
        bits.extend(bytes(max(0, byte + 1 - len(bits))))
        before = bool(bits[byte] & mask)
        bits[byte] = bits[byte] | mask if published else bits[byte] & ~mask
        return before

    def published(self, database: bytes, chunk: int) -> bytes:
        """Return the published bits of a chunk."""
        return bytes(self._published.get((database, chunk), b""))

    def beat(self, half_lease_ms: int) -> None:
        """Record the time of a call; after a long pause, no worker could renew."""
        now = self.now()
        if self.last_ms - now > TICK_MS:
            self._clock_went_back(now)
        if self.last_ms and now - self.last_ms > half_lease_ms:
            self.gap_ms = now
        self.last_ms = now

    def _clock_went_back(self, now: int) -> None:
        """Let leases and timers keep the time that they had left."""
        self.gap_ms = 0
        for job in self.jobs.values():
            job.renewed_ms = min(job.renewed_ms, now)
        for task in self.timers.up_to(math.inf, len(self.jobs) + len(self.timers)):
            self.timers.add(task, now)
