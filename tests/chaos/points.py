"""The crash points of the run: which process passes each, and which traffic makes that frequent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

POINTS: tuple[str, ...] = (
    "enqueue.inserted",
    "enqueue.committed",
    "relay.before_publish",
    "relay.published",
    "supervisor.claimed",
    "supervisor.dispatched",
    "supervisor.collected",
    "settle.before_store",
    "settle.stored",
    "settle.before_broker",
    "settle.settled",
    "release.before",
    "release.released",
    "renew.before",
    "renew.renewed",
    "crash.noticed",
    "crash.recorded",
    "reclaim.claimed",
    "reclaim.released",
    "reconcile.before_publish",
    "reconcile.published",
    "zygote.forked",
    "child.received",
    "child.acquired",
    "child.ran",
    "child.written",
    "child.committed",
    "child.reported",
)
"""Every named point, in the order in which a job passes them."""
TARGETS = ("child", "zygote", "supervisor", "all", "postgres", "redis")
"""Who is killed at a point, by SIGKILL. ``all`` is every process of every supervisor at once, as a power cut would."""
PRODUCER = "producer"
"""A seventh target, for the points that the enqueuing process passes."""

#: Weights of the kinds of transaction that a producer makes; see :mod:`tests.chaos.producer`.
TRAFFIC: Mapping[str, float] = {
    "plain": 6, "keyed": 6, "fail": 2, "crash": 0.3, "release": 1, "follow": 1, "slow": 1, "parts": 1, "steps": 1,
    "unpublished": 1, "rollback": 1, "savepoint": 1, "delayed": 1, "direct": 2, "direct_plain": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How one point is reached."""

    #: "producer", "supervisor", "zygote" or "child".
    passes: str
    #: Weights laid over :data:`TRAFFIC`.
    more: Mapping[str, float] = field(default_factory=dict)
    #: Every how many passages a process stops there: drawn from 1 to this.
    every: int = 3
    #: Whether a worker that never renews has to keep claiming, so that there is something to reclaim.
    absent: bool = False
    #: Whether children are replaced often.
    recycle: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """Return who is killed here."""
        return (*TARGETS, PRODUCER) if self.passes == "producer" else TARGETS

    def traffic(self) -> dict[str, float]:
        """Return the weights of the kinds of transaction."""
        return {**TRAFFIC, **self.more}


_PLANS: dict[str, Plan] = {
    "enqueue.inserted": Plan("producer"),
    "enqueue.committed": Plan("producer"),
    "relay.before_publish": Plan("producer"),
    "relay.published": Plan("producer"),
    "settle.before_store": Plan("supervisor", {"fail": 8}),
    "settle.stored": Plan("supervisor", {"fail": 8}),
    "release.before": Plan("supervisor", {"release": 8}),
    "release.released": Plan("supervisor", {"release": 8}),
    "renew.before": Plan("supervisor", {"slow": 4}, every=1),
    "renew.renewed": Plan("supervisor", {"slow": 4}, every=1),
    "crash.noticed": Plan("supervisor", {"crash": 5}, every=1),
    "crash.recorded": Plan("supervisor", {"crash": 5}, every=1),
    "reclaim.claimed": Plan("supervisor", every=1, absent=True),
    "reclaim.released": Plan("supervisor", every=1, absent=True),
    "reconcile.before_publish": Plan("supervisor", {"unpublished": 10}, every=1),
    "reconcile.published": Plan("supervisor", {"unpublished": 10}, every=1),
    "zygote.forked": Plan("zygote", {"crash": 1}, every=1, recycle=True),
}


def plan(point: str) -> Plan:
    """Return how ``point`` is reached."""
    if point not in POINTS:
        raise SystemExit(f"There is no crash point {point!r}; known are: {', '.join(POINTS)}.")
    return _PLANS.get(point) or Plan(point.partition(".")[0])
