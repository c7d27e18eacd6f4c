"""What the supervisor's threads share: deliveries, children, and the lock around both."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from sidestream.broker.protocol import Delivery, from_fallback
from sidestream.executors.protocol import ActionFacts
from sidestream.job.reference import LIMITED, NO_TAG8, Reference, action_of
from sidestream.worker.options import WorkerOptions

UNKNOWN_COST = 1.0
"""Seconds that an action is assumed to take before it was measured: nothing is prefetched for it."""
RECOVERY = 1.0
"""Seconds for which a child is kept free for a job whose crash is being written."""
END_OTHERS = 5.0
"""Longest time, in seconds, for which nothing is started so that what runs may end before an accused job starts."""
ALONE_MOST = 5.0
"""Longest time, in seconds, for which nothing is started beside a job that runs alone; then others go on beside it."""
SMOOTHING = 0.2
"""Share of the newest measurement in an action's average."""


def is_keyed(delivery: Delivery) -> bool:
    """Whether the job has an ordering key: such a job is never prefetched and travels alone."""
    return delivery.reference[-8:] != NO_TAG8


def is_direct(delivery: Delivery) -> bool:
    """Whether the job has no row."""
    return Reference.unpack(delivery.reference).direct


def holds_up_others(delivery: Delivery) -> bool:
    """Whether others may wait for its end: those of its key, or of its limit key."""
    return is_keyed(delivery) or delivery.reference[0] in LIMITED


class KillReason(StrEnum):
    """Why a child was killed. The job that it ran is not charged with a crash, but for UNREADABLE."""

    LIMIT = "hard limit"
    LOST = "lease lost"
    CANCELLED = "cancelled"
    STOPPING = "stopping"
    ZYGOTE = "zygote died"
    #: From outside, with SIGTERM: a service manager or a person stops every process of the worker.
    TERMINATED = "SIGTERM"
    #: By us, for a message of it: whatever ran there is charged.
    UNREADABLE = "sent a message that cannot be read"


@dataclass(eq=False, slots=True)
class ChildState:
    """One child process as the supervisor sees it."""

    slot: int
    end: socket.socket
    #: The control socket of the zygote that it comes from.
    control: socket.socket | None = None
    #: 0 until the zygote reports it.
    pid: int = 0
    #: Acquired when the pid is known; readable when the child ended.
    pidfd: int = -1
    #: Number of the batch that was sent last.
    batch: int = 0
    #: The batch's deliveries; empty when the child is idle.
    deliveries: list[Delivery] = field(default_factory=list)
    #: How many of them were reported.
    reported: int = 0
    #: Reserved for a job that runs alone, whose attempt row is being written.
    reserved: bool = False
    retiring: bool = False
    kill_reason: KillReason | None = None
    #: The job for which it was killed, if for one: the child may have started the next one meanwhile.
    killed_for: bytes | None = None
    #: Its process has ended and its deliveries were taken back: send it nothing.
    ended: bool = False
    #: Its zygote has ended: no message will report that it was reaped.
    orphaned: bool = False
    #: Position up to which a recall was asked for, or -1.
    recalled: int = -1
    #: (batch, position) for which an attempt row was written.
    recorded: tuple[int, int] = (0, -1)

    @property
    def idle(self) -> bool:
        """Whether a batch may be sent to it."""
        return self.pid > 0 and not (
            self.deliveries or self.reserved or self.retiring or self.kill_reason or self.ended
        )


@dataclass(eq=False, slots=True)
class Lone:
    """A job for which other starts are put off, and the child that is to run it."""

    delivery: Delivery
    child: ChildState
    #: Until when (monotonic) nothing else is started.
    until: float
    #: Its host died repeatedly while it ran: it is charged when its host dies again. Else it is one of those that start
    #: one at a time after an unclean end.
    accused: bool


class WorkerState:
    """All that is shared. Every attribute is read and written under :attr:`lock` unless it says otherwise."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.lock = threading.RLock()
        #: Held during a broker call that ends a delivery, and while all are reasserted in a new generation: a lease
        #: must be used in its own generation, or it counts as lost.
        self.telling = threading.Lock()
        #: Notified when there is something to claim for, a child was forked, one came back, a stop was asked for.
        self.changed = threading.Condition(self.lock)
        self.children: dict[int, ChildState] = {}
        #: Claimed, not yet sent to a child.
        self.backlog: deque[Delivery] = deque()
        #: Accused (:attr:`Lone.accused`), to be started when others may be held up.
        self.alone: deque[Delivery] = deque()
        #: While it is set, nothing else is started.
        self.exclusive: Lone | None = None
        #: The accused job that runs: one at a time, however long it takes.
        self.accused: Lone | None = None
        #: Since when (monotonic) other starts are put off for an accused job; None while they are not.
        self.held_up_since: float | None = None
        #: Before this monotonic time nothing is put off for an accused job: others were held up just before.
        self.rest_until = 0.0
        #: Every lease we hold, by reference.
        self.held: dict[bytes, Delivery] = {}
        #: What the zygote knows of the actions, by tag.
        self.actions: dict[bytes, ActionFacts] = {}
        #: Average seconds a job of an action takes, by tag.
        self.costs: dict[bytes, float] = {}
        #: Average seconds a job takes lately, whatever its action; UNKNOWN_COST until something was measured.
        self.pace = UNKNOWN_COST
        #: No more claiming: finish what runs.
        self.draining = False
        #: No claiming for now: what runs goes on, nothing waits here.
        self.quiet = False
        #: The broker knows our actions; nothing is claimed before.
        self.announced = True
        #: A thread of ours failed, which is a fault in Sidestream: its name and the error.
        self.fault: str | None = None
        #: Everything ends now.
        self.stopped = False
        #: Until this monotonic time jobs start one at a time.
        self.recovery_until = 0.0
        #: Jobs whose child died while they ran, until their crash is written, at the latest until then (monotonic): the
        #: child that takes the place of theirs is for them.
        self.recovering: dict[bytes, float] = {}
        #: PostgreSQL did not take the outcome of a job: it is tried again, and no more jobs with rows are claimed.
        self.unwritten = False
        #: The last refill came back short: wait for an idle child before asking again.
        self.last_fetch_short = False

    def add_held(self, deliveries: list[Delivery]) -> None:
        """Note that we hold these."""
        for delivery in deliveries:
            self.held[delivery.reference] = delivery

    def lone_ended(self, child: ChildState) -> None:
        """``child`` runs nothing any more: if others were held up for what it ran, they go on."""
        if self.exclusive is not None and self.exclusive.child is child:
            self.go_on()
        if self.accused is not None and self.accused.child is child:
            self.accused = None

    def go_on(self) -> None:
        """Let other jobs start; the next accused one holds them up only after they had as much time for themselves."""
        self.exclusive = None
        if self.held_up_since is not None:
            now = time.monotonic()
            self.rest_until = now + min(now - self.held_up_since, END_OTHERS + ALONE_MOST)
            self.held_up_since = None

    def current(self, delivery: Delivery) -> Delivery:
        """Return the delivery under its present lease (stating anew what we hold gives new ones)."""
        held = self.held.get(delivery.reference)
        # While Redis is away, a job whose end did not reach it may come again from PostgreSQL, under another lease.
        # One that PostgreSQL gave continues under a lease of Redis once it is back.
        return delivery if held is None or (from_fallback(held) and not from_fallback(delivery)) else held

    def idle_children(self) -> list[ChildState]:
        """Return the children that wait for work, but for those that wait for a job whose crash is being written."""
        idle = [child for child in self.children.values() if child.idle]
        if self.recovering:
            now = time.monotonic()
            self.recovering = {reference: until for reference, until in self.recovering.items() if until > now}
        return idle[len(self.recovering) :]

    def cost(self, delivery: Delivery) -> float:
        """Return the seconds that this delivery is expected to take."""
        return self.costs.get(action_of(delivery.reference), UNKNOWN_COST)

    def measured(self, times: dict[bytes, tuple[int, int]]) -> None:
        """Take a child's measurements into the averages."""
        if not times:
            return
        for action, (jobs, micros) in times.items():
            seconds = micros / jobs / 1_000_000
            known = self.costs.get(action)
            self.costs[action] = seconds if known is None else known + SMOOTHING * (seconds - known)
        latest = sum(micros for _, micros in times.values()) / sum(jobs for jobs, _ in times.values()) / 1_000_000
        self.pace = latest if self.pace >= UNKNOWN_COST else self.pace + SMOOTHING * (latest - self.pace)

    def running(self) -> int:
        """Return how many deliveries children hold."""
        return sum(len(child.deliveries) - child.reported for child in self.children.values())
