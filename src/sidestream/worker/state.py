"""Hold what the supervisor's threads share: deliveries, children, and the lock around both."""

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
"""Seconds that an action is assumed to take until it is measured; so long that nothing is prefetched."""
RECOVERY = 1.0
"""Seconds for which an idle child is reserved for a job whose crash is being written."""
END_OTHERS = 5.0
"""Longest time, in seconds, without starts before an accused job starts, so that running jobs can end."""
ALONE_MOST = 5.0
"""Longest time, in seconds, for which a job runs alone; then other jobs start beside it."""
SMOOTHING = 0.2
"""Weight of the newest measurement in an action's moving average."""


def is_keyed(delivery: Delivery) -> bool:
    """Return whether the job has a key: it is never prefetched, and is sent alone."""
    return delivery.reference[-8:] != NO_TAG8


def is_direct(delivery: Delivery) -> bool:
    """Return whether the job has no row."""
    return Reference.unpack(delivery.reference).direct


def may_block_others(delivery: Delivery) -> bool:
    """Return whether other jobs may wait for its end, because of its key or limit key."""
    return is_keyed(delivery) or delivery.reference[0] in LIMITED


class KillReason(StrEnum):
    """Why a child was killed. Only UNREADABLE charges its job with a crash."""

    LIMIT = "hard limit"
    LOST = "lease lost"
    CANCELLED = "cancelled"
    STOPPING = "stopping"
    ZYGOTE = "zygote died"
    #: Another program sent SIGTERM: a service manager or a person stops every process of the worker.
    TERMINATED = "SIGTERM"
    #: The supervisor killed it because of its message.
    UNREADABLE = "sent a message that cannot be read"


@dataclass(eq=False, slots=True)
class ChildState:
    """One child process as the supervisor sees it."""

    slot: int
    end: socket.socket
    #: The control socket of its zygote.
    control: socket.socket | None = None
    #: 0 until the zygote reports it.
    pid: int = 0
    #: Opened when the pid is known; readable when the child has ended.
    pidfd: int = -1
    #: Number of the last batch that was sent.
    batch: int = 0
    #: The batch's deliveries; empty when the child is idle.
    deliveries: list[Delivery] = field(default_factory=list)
    #: Number of deliveries that were reported.
    reported: int = 0
    #: Reserved for a job that runs alone, whose attempt row is being written.
    reserved: bool = False
    retiring: bool = False
    kill_reason: KillReason | None = None
    #: The job because of which it was killed, if any; the child may have started the next one meanwhile.
    killed_for: bytes | None = None
    #: Whether its process has ended and its deliveries were taken back.
    ended: bool = False
    #: Whether its zygote has ended, so that no message will report that it was reaped.
    orphaned: bool = False
    #: Position up to which a recall was requested, or -1.
    recalled: int = -1
    #: The last (batch, position) for which an attempt row was written.
    recorded: tuple[int, int] = (0, -1)

    @property
    def idle(self) -> bool:
        """Return whether a batch may be sent to it."""
        return self.pid > 0 and not (
            self.deliveries or self.reserved or self.retiring or self.kill_reason or self.ended
        )


@dataclass(eq=False, slots=True)
class Lone:
    """A job that runs alone while other starts are held back, and its child."""

    delivery: Delivery
    child: ChildState
    #: Monotonic time until which nothing else is started.
    until: float
    #: Whether the job is a suspect of two deaths, and charged with a third. Otherwise it runs alone because jobs start
    #: one at a time after an unclean end.
    accused: bool


class WorkerState:
    """The shared state. Hold :attr:`lock` to read or write any attribute but the locks."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.lock = threading.RLock()
        #: Held during a broker call that ends a delivery, and while all leases are restated in a new generation, as
        #: a lease that is used in another generation counts as lost.
        self.settle_lock = threading.Lock()
        #: Notified when more jobs can be claimed, a child was forked or became idle, or a stop was requested.
        self.changed = threading.Condition(self.lock)
        self.children: dict[int, ChildState] = {}
        #: Claimed jobs that were not yet sent to a child.
        self.backlog: deque[Delivery] = deque()
        #: Accused jobs (:attr:`Lone.accused`) that wait until other starts can be held back.
        self.alone: deque[Delivery] = deque()
        #: While this is set, no other job starts.
        self.exclusive: Lone | None = None
        #: The running accused job; a worker runs one at a time.
        self.accused: Lone | None = None
        #: Monotonic time since which other starts have been held back for an accused job; None if they are not.
        self.held_back_since: float | None = None
        #: Monotonic time until which no start is held back, because others were held back just before.
        self.rest_until = 0.0
        #: Every delivery that this worker holds, by reference.
        self.held: dict[bytes, Delivery] = {}
        #: The actions that the zygote has reported, by tag.
        self.actions: dict[bytes, ActionFacts] = {}
        #: Average duration of a job of an action in seconds, by tag.
        self.costs: dict[bytes, float] = {}
        #: Average duration of recent jobs of all actions, in seconds; UNKNOWN_COST until one was measured.
        self.pace = UNKNOWN_COST
        #: Whether the worker claims nothing, finishes its running jobs and exits.
        self.draining = False
        #: Whether the worker claims nothing and keeps no waiting job.
        self.quiet = False
        #: Whether the broker knows this worker's actions; nothing is claimed before.
        self.announced = True
        #: The name of a thread that failed, which is a fault in Sidestream, with the error.
        self.fault: str | None = None
        #: Whether all threads end now.
        self.stopped = False
        #: Monotonic time until which jobs start one at a time.
        self.recovery_until = 0.0
        #: Jobs whose child died while they ran, with the monotonic time at which each entry expires. Until their crash
        #: is written, an idle child is reserved for each.
        self.recovering: dict[bytes, float] = {}
        #: Whether PostgreSQL did not accept an outcome. It is written again, and no more jobs with rows are claimed.
        self.unwritten = False
        #: Whether the last claim returned less than requested; the next one waits for an idle child.
        self.last_fetch_short = False

    def add_held(self, deliveries: list[Delivery]) -> None:
        """Record that this worker holds ``deliveries``."""
        for delivery in deliveries:
            self.held[delivery.reference] = delivery

    def lone_ended(self, child: ChildState) -> None:
        """Stop holding other starts back for what ``child`` ran; it runs nothing any more."""
        if self.exclusive is not None and self.exclusive.child is child:
            self.resume_others()
        if self.accused is not None and self.accused.child is child:
            self.accused = None

    def resume_others(self) -> None:
        """Let other jobs start, and give them as much time as they were held back."""
        self.exclusive = None
        if self.held_back_since is not None:
            now = time.monotonic()
            self.rest_until = now + min(now - self.held_back_since, END_OTHERS + ALONE_MOST)
            self.held_back_since = None

    def current(self, delivery: Delivery) -> Delivery:
        """Return the delivery with its current lease, which restating may have replaced."""
        held = self.held.get(delivery.reference)
        # While Redis is unavailable, the PostgreSQL broker may lease a job again whose end is not settled in Redis.
        # When Redis returns, a job that the PostgreSQL broker leased continues under a lease of Redis.
        return delivery if held is None or (from_fallback(held) and not from_fallback(delivery)) else held

    def idle_children(self) -> list[ChildState]:
        """Return the idle children, except one for each job whose crash is being written."""
        idle = [child for child in self.children.values() if child.idle]
        if self.recovering:
            now = time.monotonic()
            self.recovering = {reference: until for reference, until in self.recovering.items() if until > now}
        return idle[len(self.recovering) :]

    def cost(self, delivery: Delivery) -> float:
        """Return the expected duration of this delivery in seconds."""
        return self.costs.get(action_of(delivery.reference), UNKNOWN_COST)

    def measured(self, times: dict[bytes, tuple[int, int]]) -> None:
        """Add a child's measurements to the averages."""
        if not times:
            return
        for action, (jobs, micros) in times.items():
            seconds = micros / jobs / 1_000_000
            known = self.costs.get(action)
            self.costs[action] = seconds if known is None else known + SMOOTHING * (seconds - known)
        latest = sum(micros for _, micros in times.values()) / sum(jobs for jobs, _ in times.values()) / 1_000_000
        self.pace = latest if self.pace >= UNKNOWN_COST else self.pace + SMOOTHING * (latest - self.pace)

    def running(self) -> int:
        """Return the number of deliveries that children hold."""
        return sum(len(child.deliveries) - child.reported for child in self.children.values())
