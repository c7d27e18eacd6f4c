"""What a broker is. It speaks of references and leases, never of Redis or of rows.

Three brokers keep this contract: :mod:`sidestream.broker.memory` (the shortest true one),
:mod:`sidestream.broker.redis` and :mod:`sidestream.broker.postgres.broker` (for when Redis is away).
``tests.support.broker_contract`` and ``broker_contract_leases`` are its suite.

A *lane* is a backlog of one database: ``<16 hex digits of the database tag>:<queue>``. A worker serves a fixed tuple of
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
"""How many row ids one known-bitmap covers."""


class Capability(StrEnum):
    """What a broker can do beyond handing out references."""

    DIRECT = "direct"  # carries jobs that have no row
    LEASES = "leases"  # leases outlive the process that took them and can be reclaimed
    PUBLISHED = "published"  # remembers which row ids it was given
    SHARED = "shared"  # several processes see the same contents
    PRIORITIES = "priorities"  # priority within a queue, aging, weights of queues
    GROUPS = "groups"  # groups are served in rotation by weight
    LIMITS = "limits"  # concurrency and rate, by parking and waking
    PAUSES = "pauses"  # of a queue, an action, a group, an action of a group
    ROUTING = "routing"  # an action that the claimer does not know waits for a worker that does


def lane(database: bytes, queue: str) -> str:
    """Return the lane of ``queue`` in the database with the 8-byte tag ``database``."""
    return f"{database.hex()}:{queue}"


class Publication(NamedTuple):
    """One job to make claimable."""

    #: The packed reference.
    reference: bytes
    #: The lane it waits in.
    lane: str
    #: Unix milliseconds at which it is due; 0 means now.
    due_ms: int = 0
    #: The signed bytes of a direct job; None for a row.
    payload: bytes | None = None
    #: Whether it was tried before: such a job keeps its place at the head of its key while it waits.
    attempted: bool = False
    #: 0 (first) to 9.
    priority: int = DEFAULT_PRIORITY
    #: Its row was given another time or priority: a known one that waits is taken out and placed anew.
    edited: bool = False
    #: Its row was ended by a newer job that replaces it: it is discarded where it waits. Rows only.
    withdrawn: bool = False


class Lease(NamedTuple):
    """The proof of who holds a delivery; compared on every settle, renew and release."""

    #: The hand-off: never given out twice, whoever takes a delivery over gets a new one.
    entry: bytes
    #: Who holds it.
    worker: str
    #: How often it was handed out; a reclaim raises it.
    deliveries: int


class Delivery(NamedTuple):
    """A reference together with the lease under which a worker holds it."""

    reference: bytes
    lane: str
    lease: Lease
    #: First-ready time in Unix milliseconds: its place in the lane, kept through release.
    ready_ms: int
    #: The signed bytes of a direct job; None for a row.
    payload: bytes | None = None
    #: Direct jobs: failed and crashed starts so far. Rows: 0, their row knows.
    attempts: int = 0
    #: Direct jobs: how many of them killed their process.
    crashes: int = 0
    #: How often it was released since it was last started.
    releases: int = 0
    #: 0 (first) to 9: the place that it goes back to.
    priority: int = DEFAULT_PRIORITY


FALLBACK_PREFIX = b"pg:"
"""Hand-off entries of a broker that needs no Redis begin so; no other broker's do."""


def from_fallback(delivery: Delivery) -> bool:
    """Whether a broker that needs no Redis gave this delivery: it is settled while Redis is away."""
    return delivery.lease.entry.startswith(FALLBACK_PREFIX)


class Generation(NamedTuple):
    """Which life of the broker's contents this is."""

    #: 0 when the contents are empty and nobody began a generation yet.
    number: int
    #: Changes when the server process or its replication history changes, with the contents kept.
    run_id: str
    #: Of the databases that were asked about (16 hex digits each): whose pending rows were all published in it.
    synced: frozenset[str]


class Reclaimed(NamedTuple):
    """The deliveries that a reclaim took over."""

    #: Deliveries that the reclaimer now holds, each with the worker that lost it.
    deliveries: Sequence[tuple[Delivery, str]]
    #: Whether another call may find more.
    more: bool


class Place(StrEnum):
    """Where a reference is."""

    NOWHERE = "nowhere"
    READY = "ready"
    DELAYED = "delayed"
    BEHIND_KEY = "behind key"
    LEASED = "leased"
    LIMITED = "limited"
    PAUSED = "paused"
    UNROUTED = "unrouted"


class Explanation(NamedTuple):
    """Where a reference is, and what it waits for."""

    place: Place
    #: Limited: "global", "queue", "action" or "key". Paused: "queue", "action", "group" or "action of group". Else "".
    scope: str = ""
    #: Limited: packed references of those that hold the slots, at most ten. Behind its key: the head of the key.
    holders: tuple[bytes, ...] = ()
    #: Delayed, or limited by a rate: Unix milliseconds at which it goes on; else 0.
    until_ms: int = 0
    #: Handed off: who holds it.
    worker: str = ""
    #: Ready: how many jobs of its group and priority come first.
    rank: int = 0


class Broker(Protocol):
    """Where references wait and who holds them.

    Every method may raise :class:`~sidestream.errors.BrokerUnavailable`, :class:`~sidestream.errors.BrokerUnsuitable`,
    :class:`~sidestream.errors.BrokerFull` or :class:`~sidestream.errors.StaleGeneration`, and nothing else of its
    client library. All methods are bounded in time by the broker's own time-outs and safe to call from several threads.
    """

    capabilities: frozenset[Capability]

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """Return the current generation and remember its number for the calls that follow (no write).

        ``databases``: of which it is to say whether they are synced (8 bytes each).
        """
        ...

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """Begin a generation if there is none (the first caller wins), then as :meth:`generation`."""
        ...

    def mark_synced(self, database: bytes) -> None:
        """State that all pending rows of ``database`` were published in this generation."""
        ...

    def configure(self, database: bytes, rules: Rules) -> bool:
        """Let ``rules`` govern the lanes of ``database`` from now on; False when newer ones do so already.

        In a new generation nothing of a database is claimed before its rules were given, and nothing that a limit
        concerns before :meth:`mark_synced`: until then workers state what they hold. Rules with the same version
        are given again after every loss; what is paused or limited no longer is woken in bounded lots.
        """
        ...

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """Tell that ``worker`` is alive and serves ``lanes``; ``info`` is JSON for people; gone after ``ttl_ms``.

        ``actions``: tags of the actions that it knows, it is handed no others; None: it takes any. A job whose action
        its claimer does not know is parked until an announced worker of its lane knows it, and handed to that one.
        """
        ...

    def withdraw(self, worker: str) -> None:
        """Take the announcement back (at a clean stop, after everything held was released)."""
        ...

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """Make jobs claimable; return how many were new.

        Idempotent: a row whose known bit is set, or a direct job whose bytes are already held, is skipped. ``force``
        publishes a row all the same, unless its reference is found in some place. One that is ``edited`` is placed
        anew and keeps its counts, one that is ``withdrawn`` is discarded, unless it is handed off; then its worker
        sees the row.
        """
        ...

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """Hand up to ``free`` jobs to ``worker``, and up to ``prefetch`` more that have neither key nor limit.

        Lanes take turns by weight; in a lane the lowest priority number goes first, but every second turn belongs to
        a lower one whose next job has been ready for longer than the rules' aging; of a priority, groups take turns by
        weight; of a group, the oldest first-ready time goes first, ties by id. Nothing paused, limited or unknown to
        the worker is handed out: it is moved to where its reason waits (at most 100 a call) and woken from there. A
        keyed job is handed out only while it is the head of its key. When there is nothing, wait up to ``wait_ms`` (or
        until something is due) for a first one.
        """
        ...

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """Restart the lease time of each; return those that are no longer ours (``lost``)."""
        ...

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        """Final: forget these jobs, free their keys, clear their known bits; return the leases that were lost."""
        ...

    def release(self, delivery: Delivery, release: Release) -> int:
        """Return a delivery to its lane as ``release`` says.

        Returns:
            How many releases were counted since the job last started; -1 when the lease was lost.
        """
        ...

    def fail(self, delivery: Delivery, error: str) -> bool:
        """End a direct job as failed, its bytes and ``error`` kept; return False when the lease was lost."""
        ...

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        """Take over up to 100 deliveries of these lanes whose lease ran out; the caller decides on each, then releases.

        Does nothing for ``grace_ms`` after a gap in all calls of more than half of ``lease_ms``: their owners could
        not renew. Entries that nobody read and whose workers are all gone go back to their lanes by themselves.
        """
        ...

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """In a new generation: state what ``worker`` holds; return the deliveries under their new leases."""
        ...

    def published(self, database: bytes, chunk: int) -> bytes:
        """Return the known bits of ids from ``chunk * CHUNK``, most significant bit first, maybe shorter or empty."""
        ...

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """Say where each of these rows' references is.

        A job whose whole lane, or whose group, is paused or limited is READY here: it waits in its lane.
        :meth:`explain` says for what.
        """
        ...

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        """Return until when each of these rows' references is delayed, in Unix milliseconds; 0: it is not."""
        ...

    def explain(self, job: Publication) -> Explanation:
        """Say where one reference is and what it waits for."""
        ...

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """Give a waiting reference another priority; False when it is handed off or nowhere."""
        ...

    def discard(self, job: Publication) -> bool:
        """Remove a waiting reference whose row ended (a person cancelled it); False when handed off or nowhere.

        The head of a key is found under any lane and priority: its row may be gone.
        """
        ...

    def close(self) -> None:
        """Close connections; later calls raise :class:`~sidestream.errors.BrokerUnavailable`."""
        ...


@runtime_checkable
class AtOnce(Protocol):
    """A broker that can publish over a connection that is open already, in the thread of whoever waits for it."""

    def get_ready(self) -> None:
        """Open that connection unless it is open; may be slow, and raises as a :class:`Broker`'s methods do."""
        ...

    def publish_at_once(self, jobs: Sequence[Publication], seconds: float) -> bool:
        """Publish a few jobs of a few KiB in all within ``seconds``; False: go the other way, which may repeat them.

        No name is resolved and nothing is connected. For one thread at a time. Raises
        :class:`~sidestream.errors.BrokerUnavailable` when there was no answer in time, and the other errors of
        :meth:`Broker.publish`.
        """
        ...
