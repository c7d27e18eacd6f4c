"""What the memory broker holds: one life of its contents, and how a job changes its place in them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from sidestream.broker.limits import Gates, Limiter
from sidestream.broker.memory.pools import Pool, Seat, SortedSet, flow_of
from sidestream.broker.protocol import CHUNK, Lease, Place
from sidestream.job.names import tag
from sidestream.job.reference import NO_TAG8, Reference, group_tag
from sidestream.job.rules import Rules

Key = tuple[bytes, bool, bytes]
"""Database, whether of direct jobs, key tag."""
TICK_MS = 1000
"""Milliseconds that the clock may go back without notice: a step of its time service."""


@dataclass(slots=True, eq=False)
class Job:
    """One job that is open here."""

    reference: bytes
    named: Reference
    lane: str
    priority: int
    ready_ms: int
    #: When its row says that it is due; 0 when that has passed or does not matter.
    due_ms: int
    payload: bytes | None
    place: Place = Place.NOWHERE
    #: Where it waits: delayed, ready or parked; None behind its key and handed off.
    pool: Pool | None = None
    lease: Lease | None = None
    renewed_ms: int = 0
    attempts: int = 0
    crashes: int = 0
    releases: int = 0
    deliveries: int = 0

    @property
    def key(self) -> Key | None:
        """Whose line it stands in."""
        return (self.named.database, self.named.direct, self.named.key) if self.named.key != NO_TAG8 else None

    @property
    def rank(self) -> float:
        """Its place in that line; ties by the reference."""
        return self.ready_ms if self.named.direct else self.named.id

    @property
    def flow(self) -> Seat:
        """Its bin, in whatever pool it waits."""
        return flow_of(self.priority, self.named.group)

    @property
    def database(self) -> str:
        """Whose rules govern it."""
        return self.lane[:16]

    @property
    def queue(self) -> str:
        """The name behind the lane's database."""
        return self.lane[17:]


class Parked(Pool):
    """The pool of those that wait for one reason."""

    def __init__(self, name: str, place: Place, database: str, scope: str, sample: Job) -> None:
        """Begin empty; ``name`` also orders pools that are due at once, ``sample`` is the first that waits so."""
        super().__init__()
        self.name, self.place, self.database, self.scope, self.sample = name, place, database, scope, sample


class Governing:
    """The rules of a database by the tags that references carry, and what their limits count."""

    def __init__(self, rules: Rules, limiter: Limiter) -> None:
        """Index ``rules``; ``limiter`` lives on when they change."""
        self.rules, self.limiter, self.gates = rules, limiter, Gates(rules)
        self.ageing_ms = rules.aging * 1000
        self.queues = {pause.queue for pause in rules.pauses if pause.queue}
        self.actions = {tag(one.action, 4) for one in rules.pauses if one.action and one.group is None}
        self.groups = {group_tag(one.group) for one in rules.pauses if one.group and one.action is None}
        self.pairs = {(tag(one.action, 4), group_tag(one.group)) for one in rules.pauses if one.action and one.group}
        self.group_weights = {group_tag(name): weight for name, weight in rules.group_weights.items()}
        self.limited = bool(rules.limits)
        self.picky = bool(self.limited or self.actions or self.pairs)


class Contents:
    """Every job in one place at a time (:class:`~sidestream.broker.protocol.Place`). The caller locks."""

    def __init__(self, now: Callable[[], int], first_token: int = 0) -> None:
        """Begin empty; ``now`` gives Unix ms, tokens go on after ``first_token``."""
        self.now = now
        self.number = 0
        self.tokens = first_token
        self.synced: set[str] = set()
        self.jobs: dict[bytes, Job] = {}
        self.failed: dict[bytes, tuple[Job, str]] = {}
        self.ready: defaultdict[str, Pool] = defaultdict(Pool)
        self.delayed: defaultdict[tuple[str, int], SortedSet] = defaultdict(SortedSet)
        self.parked: dict[str, Parked] = {}
        #: Names of parked pools by the ms at which they are looked at.
        self.wakes = SortedSet()
        self.held: defaultdict[str, set[bytes]] = defaultdict(set)
        self.rules: dict[str, Governing] = {}
        #: By worker: tags of the actions that it knows; those that are not named know any.
        self.knows: dict[str, frozenset[bytes]] = {}
        self.last_ms = self.gap_ms = 0
        self._known: dict[tuple[bytes, int], bytearray] = {}

    def place_at(self, job: Job, until_ms: int) -> None:
        """Let a job wait until then, or be ready when that has come."""
        if until_ms > self.now():
            job.place, job.pool = Place.DELAYED, None
            self.delayed[job.lane, job.priority].add(job.reference, until_ms)
        else:
            job.place, job.pool = Place.READY, self.ready[job.lane]
            job.pool.put(job.flow, job.reference, job.ready_ms)

    def park(self, job: Job, name: str, place: Place, scope: str) -> Parked:
        """Let a job wait in the pool ``name``, and return that."""
        pool = self.parked.get(name)
        if pool is None:
            pool = self.parked[name] = Parked(name, place, job.database, scope, job)
        job.place, job.pool = place, pool
        pool.put(job.flow, job.reference, job.ready_ms)
        return pool

    def unplace(self, job: Job) -> None:
        """Take a job out of wherever it is delayed, ready or parked."""
        if job.place is Place.DELAYED:
            self.delayed[job.lane, job.priority].remove(job.reference)
        elif job.pool is not None:
            job.pool.remove(job.flow, job.reference)
            if isinstance(job.pool, Parked) and not job.pool:
                self.forget_pool(job.pool)
        job.place, job.pool = Place.NOWHERE, None

    def reprioritize(self, job: Job, priority: int) -> None:
        """Give a waiting job another priority where it is; it keeps its time."""
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
        """A parked pool is empty: nothing in it has to be looked at."""
        self.parked.pop(pool.name, None)
        self.wakes.remove(pool.name.encode())

    def due_ms(self, lane: str) -> int | None:
        """Return when the first delayed job of a lane is due; None when there is none."""
        firsts = [self.delayed[lane, priority].first() for priority in range(10)]
        return min((int(first[0]) for first in firsts if first), default=None)

    def mark(self, named: Reference, *, known: bool) -> bool:
        """Set or clear the known bit of a row and return what it was; a direct job has none."""
        if named.direct:
            return False
        chunk, bit = divmod(named.id, CHUNK)
        bits = self._known.setdefault((named.database, chunk), bytearray())
        byte, mask = bit // 8, 0x80 >> bit % 8
        bits.extend(bytes(max(0, byte + 1 - len(bits))))
        before = bool(bits[byte] & mask)
        bits[byte] = bits[byte] | mask if known else bits[byte] & ~mask
        return before

    def published(self, database: bytes, chunk: int) -> bytes:
        """Return the known bits of a chunk."""
        return bytes(self._known.get((database, chunk), b""))

    def beat(self, half_lease_ms: int) -> None:
        """Note that somebody called: a long silence before it means that nobody could renew."""
        now = self.now()
        if self.last_ms - now > TICK_MS:
            self._clock_went_back(now)
        if self.last_ms and now - self.last_ms > half_lease_ms:
            self.gap_ms = now
        self.last_ms = now

    def _clock_went_back(self, now: int) -> None:
        """What was to happen some time after what is still to come happens as long after now."""
        self.gap_ms = 0
        for job in self.jobs.values():
            job.renewed_ms = min(job.renewed_ms, now)
        for task in self.wakes.upto(math.inf, len(self.jobs) + len(self.wakes)):
            self.wakes.add(task, now)
