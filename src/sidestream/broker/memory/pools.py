"""Serve pools of jobs fairly by group (decision 0006), with sorted sets like those of Redis."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice

from sortedcontainers import SortedList

LEVEL = 2**40
"""The score of a flow is priority x LEVEL + the virtual time of its group."""
Flow = bytes
"""A priority as a digit, then the 8 bytes of a group."""


def flow_of(priority: int, group: bytes) -> Flow:
    """Return the flow of a group in a priority."""
    return b"%d" % priority + group


class SortedSet:
    """A sorted set as in Redis: members ordered by score, then by member."""

    def __init__(self) -> None:
        """Begin empty."""
        self._scores: dict[bytes, float] = {}
        self._order = SortedList()

    def __len__(self) -> int:
        """Return how many members there are."""
        return len(self._scores)

    def __contains__(self, member: bytes) -> bool:
        """Return whether it is a member."""
        return member in self._scores

    def add(self, member: bytes, score: float) -> bool:
        """Add a member or change its score; return whether it is new."""
        new = not self.remove(member)
        self._scores[member] = score
        self._order.add((score, member))
        return new

    def remove(self, member: bytes) -> bool:
        """Remove a member; return whether it was one."""
        score = self._scores.pop(member, None)
        if score is None:
            return False
        self._order.remove((score, member))
        return True

    def score(self, member: bytes) -> float | None:
        """Return the score of a member, None if it is not one."""
        return self._scores.get(member)

    def first(self, minimum: float = 0) -> tuple[float, bytes] | None:
        """Return the first (score, member) with a score of at least ``minimum``, or None."""
        return next(self._order.irange((minimum, b"")), None)

    def last(self) -> tuple[float, bytes] | None:
        """Return score and member of the last one; None if there is none."""
        return self._order[-1] if self._order else None

    def up_to(self, score: float, most: int) -> list[bytes]:
        """Return the first members, at most ``most``, whose scores are at most ``score``."""
        return [member for its, member in islice(self._order, most) if its <= score]

    def rank(self, member: bytes) -> int:
        """Return how many members precede this one."""
        rank: int = self._order.index((self._scores[member], member))
        return rank


class Pool:
    """Jobs by flow (priority and group), and the schedule of the flows that are served."""

    def __init__(self) -> None:
        """Begin empty."""
        self.schedule = SortedSet()
        self.flows: defaultdict[Flow, SortedSet] = defaultdict(SortedSet)
        self._aged: tuple[bool, int] = (False, 0)  # whether the last turn was an aged one, and the last aged priority

    def schedule_flow(self, flow: Flow) -> None:
        """Add a flow to the schedule as the next of its priority, unless it is there."""
        if flow in self.schedule:
            return
        floor = (flow[0] - 48) * LEVEL
        first = self.schedule.first(floor)
        self.schedule.add(flow, first[0] if first and first[0] < floor + LEVEL else floor)

    def put(self, flow: Flow, member: bytes, ready_ms: float) -> None:
        """Add a job to its flow; a flow that was empty joins the schedule."""
        self.flows[flow].add(member, ready_ms)
        if len(self.flows[flow]) == 1:
            self.schedule_flow(flow)

    def remove(self, flow: Flow, member: bytes) -> None:
        """Remove a job; an empty flow leaves the schedule."""
        self.flows[flow].remove(member)
        if not self.flows[flow]:
            del self.flows[flow]
            self.schedule.remove(flow)

    def charge(self, flow: Flow, count: int, weight: float) -> None:
        """Advance the virtual time of a flow's group by ``count`` jobs."""
        self.schedule.add(flow, (self.schedule.score(flow) or 0) + round(count / weight, 6))

    def next_flow(self, aged_before: float | None = None) -> Flow | None:
        """Return the flow that is served next; None if there is none.

        The lowest priority number goes first. Every second turn goes to a less urgent priority whose next job was
        ready before ``aged_before``; these priorities alternate.
        """
        first, last = self.schedule.first(), self.schedule.last()
        if first is None or last is None or aged_before is None or first[1][0] == last[1][0]:
            return first[1] if first else None
        aged = {flow[0]: flow for flow in self._lower(first[1][0] - 48) if self._ready(flow) < aged_before}
        if not aged:
            return first[1]
        taken, level = self._aged
        if taken:
            self._aged = (False, level)
            return first[1]
        level = min((one for one in aged if one > level), default=min(aged))
        self._aged = (True, level)
        return aged[level]

    def _lower(self, priority: int) -> list[Flow]:
        found = []
        while one := self.schedule.first((priority + 1) * LEVEL):
            found.append(one[1])
            priority = one[1][0] - 48
        return found

    def _ready(self, flow: Flow) -> float:
        first = self.flows[flow].first()
        assert first is not None, "a scheduled flow has a job"
        return first[0]

    def __bool__(self) -> bool:
        """Return whether any flow is scheduled."""
        return len(self.schedule) > 0
