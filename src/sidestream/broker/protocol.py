"""What a broker is. It speaks of references and leases, never of Redis or of rows.

Three brokers keep this contract: :mod:`sidestream.broker.memory` (the shortest true one),
:mod:`sidestream.broker.redis` and :mod:`sidestream.broker.postgres` (for when Redis is away).
``sidestream.testing.broker_contract`` and ``broker_contract_leases`` are its suite.

A *lane* is a backlog of one database: ``<16 hex digits of the database tag>:<queue>``. A worker serves a fixed tuple of
lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

CHUNK = 32_768
"""How many row ids one known-bitmap covers."""


class Capability(StrEnum):
    """What a broker can do beyond handing out references."""

    DIRECT = "direct"  # carries jobs that have no row
    LEASES = "leases"  # leases outlive the process that took them and can be reclaimed
    KNOWN = "known"  # remembers which row ids it was given
    SHARED = "shared"  # several processes see the same contents


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


class Lease(NamedTuple):
    """The proof of who holds a delivery; compared on every settle, renew and release."""

    #: The hand-off: never given out twice, whoever takes a delivery over gets a new one.
    entry: bytes
    #: Who holds it.
    consumer: str
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
    #: How often it was handed back since it was last started.
    releases: int = 0


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
    #: Databases (16 hex digits each) whose open rows were all published in this generation.
    built: frozenset[str]


class Reclaimed(NamedTuple):
    """What a reclaim took over, and where to go on."""

    #: Pass it to the next call; "0-0" when the round is complete.
    cursor: str
    #: Deliveries now held by the reclaimer, each with the consumer that lost it.
    deliveries: Sequence[tuple[Delivery, str]]


class Place(StrEnum):
    """Where a reference is."""

    NOWHERE = "nowhere"
    READY = "ready"
    DELAYED = "delayed"
    BEHIND_KEY = "behind key"
    HANDED_OFF = "handed off"


class Broker(Protocol):
    """Where references wait and who holds them.

    Every method may raise :class:`~sidestream.errors.BrokerUnavailable`, :class:`~sidestream.errors.BrokerUnsuitable`,
    :class:`~sidestream.errors.BrokerFull` or :class:`~sidestream.errors.GenerationMoved`, and nothing else of its
    client library. All methods are bounded in time by the broker's own time-outs and safe to call from several threads.
    """

    capabilities: frozenset[Capability]

    def generation(self) -> Generation:
        """Return the current generation and remember its number for the calls that follow (no write)."""
        ...

    def begin_generation(self) -> Generation:
        """Begin a generation if there is none (the first caller wins), then as :meth:`generation`."""
        ...

    def mark_built(self, database: bytes) -> None:
        """State that all open rows of ``database`` were published in this generation."""
        ...

    def announce(self, consumer: str, lanes: Sequence[str], info: str, ttl_ms: int) -> None:
        """Tell that ``consumer`` is alive and serves ``lanes``; ``info`` is JSON for people; gone after ``ttl_ms``."""
        ...

    def withdraw(self, consumer: str, lanes: Sequence[str]) -> None:
        """Take the announcement back (at a clean stop, after everything held was released)."""
        ...

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """Make jobs claimable; return how many were new.

        Idempotent: a row whose known bit is set, or a direct job whose bytes are already held, is skipped. ``force``
        publishes a row all the same, unless its reference is found in some place.
        """
        ...

    def claim(
        self, consumer: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """Hand up to ``free`` jobs to ``consumer``, and up to ``prefetch`` more that have no key.

        Oldest first-ready time first, ties by id. When there is nothing, wait up to ``wait_ms`` (or until something is
        due) for a first one. A keyed job is handed out only while it is the head of its key.
        """
        ...

    def renew(self, consumer: str, lanes: Sequence[str], leases: Sequence[Lease]) -> list[Lease]:
        """Restart the lease time of each; return those that are no longer ours (``lost``)."""
        ...

    def settle(self, lanes: Sequence[str], deliveries: Sequence[Delivery]) -> list[Lease]:
        """Final: forget these jobs, free their keys, clear their known bits; return the leases that were lost."""
        ...

    def release(
        self,
        lanes: Sequence[str],
        delivery: Delivery,
        *,
        delay_ms: int | None = 0,
        blocked_by: int | None = None,
        charge_attempt: bool = False,
        charge_crash: bool = False,
        count: bool = True,
    ) -> int:
        """Hand one back; return how often it was released since it was last started, or -1 when the lease was lost.

        ``delay_ms`` 0 puts it back at its old place, a number delays it, None lets the delay grow with the releases
        (50 ms doubling to 30 s). ``blocked_by`` is the smallest open id of its key: the job goes back behind the key.
        The ``charge_*`` marks count for direct jobs (rows are charged by the store) and restart the release count; a
        retry is a release with ``charge_attempt`` and a delay, and keeps the head of its key. ``count=False`` does not
        count the release (a worker that stops, a prefetched job that comes back).
        """
        ...

    def bury(self, lanes: Sequence[str], delivery: Delivery, error: str) -> bool:
        """End a direct job as dead, its bytes and ``error`` kept; return False when the lease was lost."""
        ...

    def reclaim(self, consumer: str, lanes: Sequence[str], *, lease_ms: int, renew_ms: int, cursor: str) -> Reclaimed:
        """Take over up to 100 deliveries of these lanes whose lease ran out; the caller decides on each, then releases.

        Does nothing for ``renew_ms`` after a gap in all calls of more than half of ``lease_ms``: their owners could
        not renew. Entries that nobody read and whose workers are all gone go back to their lanes by themselves.
        """
        ...

    def reassert(self, consumer: str, lanes: Sequence[str], deliveries: Sequence[Delivery]) -> list[Delivery]:
        """In a new generation: state what ``consumer`` holds; return the deliveries under their new leases."""
        ...

    def known(self, database: bytes, chunk: int) -> bytes:
        """Return the known bits of ids from ``chunk * CHUNK``, most significant bit first, maybe shorter or empty."""
        ...

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        """Say where each of these rows' references is."""
        ...

    def discard(self, job: Publication) -> bool:
        """Remove a waiting reference whose row ended (a person cancelled it); False when handed off or nowhere."""
        ...

    def close(self) -> None:
        """Close connections; later calls raise :class:`~sidestream.errors.BrokerUnavailable`."""
        ...
