"""Define the contract of a broker, in terms of references and leases.

Three brokers implement it: :mod:`sidestream.broker.memory` (the shortest complete one),
:mod:`sidestream.broker.redis` and :mod:`sidestream.broker.postgres.broker` (used while Redis is unavailable).
The tests in ``tests.support.broker_contract*`` check each of them.

A *lane* is a queue of one database: ``<16 hex digits of the database tag>:<queue>``. A worker serves a fixed tuple of
lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from sidestream.job.job import DEFAULT_PRIORITY
from sidestream.job.outcome import Release
from sidestream.job.rules import Rules

CHUNK = 32_768
"""Number of row ids in one bitmap of published bits."""


class Capability(StrEnum):
    """A feature that a broker may have beyond leasing references."""

    DIRECT = "direct"  # jobs without a row
    LEASES = "leases"  # leases outlive the process that holds them and can be reclaimed
    PUBLISHED = "published"  # remembers which row ids were published
    SHARED = "shared"  # several processes see the same contents
    PRIORITIES = "priorities"  # priorities within a queue, aging, weights of queues
    GROUPS = "groups"  # groups take turns by weight
    LIMITS = "limits"  # limits of concurrency and rate
    PAUSES = "pauses"  # of a queue, an action, a group, an action of a group
    ROUTING = "routing"  # a job whose action the claiming worker does not know waits for one that does


def lane(database: bytes, queue: str) -> str:
    """Return the lane of ``queue`` in the database with the 8-byte tag ``database``."""
    return f"{database.hex()}:{queue}"


class Publication(NamedTuple):
    """A job to be made claimable."""

    #: The packed reference.
    reference: bytes
    #: The lane it waits in.
    lane: str
    #: Due time in Unix milliseconds; 0 means now.
    due_ms: int = 0
    #: The signed bytes of a direct job; None for a row.
    payload: bytes | None = None
    #: Whether it has been started before: such a job stays the head of its key while it is delayed.
    attempted: bool = False
    #: 0 (first) to 9.
    priority: int = DEFAULT_PRIORITY
    #: Whether the time or priority of its row has changed: a waiting job is placed again.
    edited: bool = False
    #: Whether a newer job has replaced it: it is removed if it waits. Rows only.
    withdrawn: bool = False


class Lease(NamedTuple):
    """The identity of a lease, which every settle, renew, release and fail compares."""

    #: Token and reference. A token is never used twice; a takeover assigns a new one.
    entry: bytes
    #: The worker that holds it.
    worker: str
    #: How often the job was delivered; a takeover adds one.
    deliveries: int


class Delivery(NamedTuple):
    """A reference that a broker has leased to a worker."""

    reference: bytes
    lane: str
    lease: Lease
    #: First-ready time in Unix milliseconds. It decides the job's place in the lane, and a release keeps it.
    ready_ms: int
    #: The signed bytes of a direct job; None for a row.
    payload: bytes | None = None
    #: Direct jobs: failed attempts so far, crashes included. Rows: 0, because the row counts them.
    attempts: int = 0
    #: Direct jobs: crashes so far.
    crashes: int = 0
    #: Number of releases since the job was last started.
    releases: int = 0
    #: 0 (first) to 9.
    priority: int = DEFAULT_PRIORITY


FALLBACK_PREFIX = b"pg:"
"""Prefix of the lease entries of the PostgreSQL broker; entries of other brokers never begin with it."""


def from_fallback(delivery: Delivery) -> bool:
    """Return whether the PostgreSQL broker leased this delivery, so it settles without Redis."""
    return delivery.lease.entry.startswith(FALLBACK_PREFIX)


class Generation(NamedTuple):
    """One life of the broker's contents; emptying them begins a new generation."""

    #: 0 if the contents are empty and no generation has begun.
    number: int
    #: Changes with the server process or its replication history, even if the contents are kept.
    run_id: str
    #: Those of the requested databases (16 hex digits each) whose pending rows were all published in it.
    synced: frozenset[str]


class Reclaimed(NamedTuple):
    """The result of a reclaim."""

    #: Deliveries that the caller now holds, each with the worker that lost it.
    deliveries: Sequence[tuple[Delivery, str]]
    #: Whether another call may find more.
    more: bool


class Place(StrEnum):
    """The place of a reference in the broker."""

    NOWHERE = "nowhere"
    READY = "ready"
    DELAYED = "delayed"
    BEHIND_KEY = "behind key"
    LEASED = "leased"
    LIMITED = "limited"
    PAUSED = "paused"
    UNROUTED = "unrouted"


class Explanation(NamedTuple):
    """The place of a reference, and what it waits for."""

    place: Place
    #: Limited: "global", "queue", "action" or "key". Paused: "queue", "action", "group" or "action of group". Else "".
    scope: str = ""
    #: Limited: packed references of at most ten jobs that hold the slots. Behind its key: the head of the key.
    holders: tuple[bytes, ...] = ()
    #: Delayed, or limited by a rate: Unix milliseconds at which it continues; else 0.
    until_ms: int = 0
    #: Leased: the worker that holds it.
    worker: str = ""
    #: Ready: number of jobs of its group and priority that come first.
    rank: int = 0


class Broker(Protocol):
    """Orders references and leases them to workers.

    Every method may raise :class:`~sidestream.errors.BrokerUnavailable`, :class:`~sidestream.errors.BrokerUnsuitable`,
    :class:`~sidestream.errors.BrokerFull` or :class:`~sidestream.errors.StaleGeneration`, and no error of a client
    library. The broker's timeouts bound every call, and several threads may call it.
    """

    capabilities: frozenset[Capability]

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """Return the current generation, and remember its number for later calls.

        ``databases``: the tags (8 bytes each) of the databases to look up in ``synced``. Nothing is written.
        """
        ...

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """Begin a generation if there is none, then do as :meth:`generation`."""
        ...

    def mark_synced(self, database: bytes) -> None:
        """Record that all pending rows of ``database`` were published in this generation."""
        ...

    def configure(self, database: bytes, rules: Rules) -> bool:
        """Put ``rules`` in force for ``database``; return False if newer rules are in force.

        In a new generation, no job of a database is claimed before its rules are in force, and no job that a limit
        counts before :meth:`mark_synced`, because workers restate their leases until then. Call it again with the
        same version after every loss. Jobs that are no longer paused or limited are woken in bounded batches.
        """
        ...

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """Announce that ``worker`` is alive and serves ``lanes``, for ``ttl_ms``.

        ``info`` is JSON for people. ``actions`` are the tags of the actions that the worker knows; None means all. It
        receives no other jobs: they are parked as unrouted until an announced worker of their lane knows them.
        """
        ...

    def withdraw(self, worker: str) -> None:
        """Withdraw the announcement, at a clean stop, after the worker has released its deliveries."""
        ...

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """Make jobs claimable; return how many were new.

        Idempotent: a row whose published bit is set, or a direct job that is already stored, is skipped. ``force``
        publishes a row whose bit is set, unless its reference is in a place. An ``edited`` job is placed again and
        keeps its counts, and a ``withdrawn`` one is removed; neither happens to a leased job, whose worker reads the
        row.
        """
        ...

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """Lease up to ``free`` jobs, and up to ``prefetch`` more without key and limit.

        Lanes take turns by weight. In a lane, the lowest priority number goes first, but every second turn goes to a
        lower priority whose next job has been ready for longer than the aging time. Within a priority, groups take
        turns by weight. Within a group, the oldest first-ready time goes first, ties by id. Jobs that are paused,
        limited or unknown to the worker are parked (at most 100 per call) and woken later. A keyed job is leased only
        while it is the head of its key. If no job is ready, wait up to ``wait_ms`` for the first one.
        """
        ...

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """Restart the time of these leases; return those that were lost."""
        ...

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        """Remove these jobs, free their keys and clear their bits; return the lost leases."""
        ...

    def release(self, delivery: Delivery, release: Release) -> int:
        """Return a delivery to its lane as ``release`` says.

        Returns:
            The number of releases since the job was last started; -1 if the lease was lost.
        """
        ...

    def fail(self, delivery: Delivery, error: str) -> bool:
        """End a direct job as failed and keep its bytes and ``error``; False if the lease was lost."""
        ...

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        """Take over up to 100 deliveries of these lanes whose lease has expired.

        The caller decides about each one, then settles, releases or fails it. For ``grace_ms`` after all workers were
        silent for more than half of ``lease_ms``, nothing is taken over, so that their owners can renew first.
        """
        ...

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Restate what ``worker`` holds, in a new generation; return the new leases."""
        ...

    def published(self, database: bytes, chunk: int) -> bytes:
        """Return the bits of ids from ``chunk * CHUNK``, most significant first; may be short."""
        ...

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """Return the place of each of these rows' references.

        A job whose lane or group is paused or limited is READY here; :meth:`explain` names the rule.
        """
        ...

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        """Return until when each of these rows is delayed, in Unix milliseconds, else 0."""
        ...

    def explain(self, job: Publication) -> Explanation:
        """Return the place of one reference, and what it waits for."""
        ...

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """Change the priority of a waiting reference; False if it is leased or nowhere."""
        ...

    def discard(self, job: Publication) -> bool:
        """Remove a waiting reference whose row has ended; False if it is leased or nowhere.

        The head of a key is found whatever lane and priority ``job`` names, because its row may be gone.
        """
        ...

    def close(self) -> None:
        """Close connections; later calls raise :class:`~sidestream.errors.BrokerUnavailable`."""
        ...


@runtime_checkable
class AtOnce(Protocol):
    """A broker that can publish in the caller's thread, over an open connection."""

    def get_ready(self) -> None:
        """Open that connection unless it is open. May be slow; raises as :class:`Broker` does."""
        ...

    def publish_at_once(self, jobs: Sequence[Publication], seconds: float) -> bool:
        """Publish a few small jobs within ``seconds``; False if the caller must use ``publish``.

        Together they may have a few KiB. Resolves no name and opens no connection. Only one thread may call it at a
        time. Raises :class:`~sidestream.errors.BrokerUnavailable` without an answer in time, and the other errors of
        :meth:`Broker.publish`.
        """
        ...
