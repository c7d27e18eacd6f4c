"""Where jobs wait that may be taken in any order that is fair: sorted sets, rings and bins (decision 0006)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict

LEVEL = 2**40
"""A flow's score is priority x LEVEL + its group's virtual time."""
Seat = bytes
"""A priority as a digit, then the 8 bytes of a group."""


def flow_of(priority: int, group: bytes) -> Seat:
    """Return the flow of a group in a priority."""
    return b"%d" % priority + group


class SortedSet:
    """Members in the order of their scores, ties by the member."""

    def __init__(self) -> None:
        """Begin empty."""
        self._scores: dict[bytes, float] = {}
        self._order: list[tuple[float, bytes]] = []
        self._start = 0  # what stands before it was popped

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
        insort(self._order, (score, member), lo=self._start)
        return new

    def remove(self, member: bytes) -> bool:
        """Remove a member; return whether it was one."""
        score = self._scores.pop(member, None)
        if score is None:
            return False
        at = bisect_left(self._order, (score, member), lo=self._start)
        if at == self._start:
            self._start += 1
            if self._start * 2 > len(self._order):
                del self._order[: self._start]
                self._start = 0
        else:
            del self._order[at]
        return True

    def score(self, member: bytes) -> float | None:
        """Return the score of a member, None of what is none."""
        return self._scores.get(member)

    def first(self, at_least: float = 0) -> tuple[float, bytes] | None:
        """Return score and member of the first one whose score is ``at_least`` that; None when there is none."""
        at = bisect_left(self._order, (at_least, b""), lo=self._start)
        return self._order[at] if at < len(self._order) else None

    def last(self) -> tuple[float, bytes] | None:
        """Return score and member of the last one."""
        return self._order[-1] if self._scores else None

    def upto(self, score: float, most: int) -> list[bytes]:
        """Return the first ``most`` members whose scores are no more than ``score``."""
        page = self._order[self._start : self._start + most]
        return [member for its, member in page if its <= score]

    def rank(self, member: bytes) -> int:
        """Return how many stand before a member."""
        return bisect_left(self._order, (self._scores[member], member), lo=self._start) - self._start


class Pool:
    """A ring of flows, one for each bin that is served; a bin holds the jobs of a group in a priority."""

    def __init__(self) -> None:
        """Begin empty."""
        self.ring = SortedSet()
        self.bins: defaultdict[Seat, SortedSet] = defaultdict(SortedSet)
        self._aged: tuple[bool, int] = (False, 0)  # whether the last turn was an aged one's, the last aged priority

    def schedule_flow(self, flow: Seat) -> None:
        """Let a bin be served as the next of its priority; nothing when it is served already."""
        if flow in self.ring:
            return
        floor = (flow[0] - 48) * LEVEL
        first = self.ring.first(floor)
        self.ring.add(flow, first[0] if first and first[0] < floor + LEVEL else floor)

    def put(self, flow: Seat, member: bytes, ready_ms: float) -> None:
        """Put a job into its bin; a bin that was empty takes its flow."""
        self.bins[flow].add(member, ready_ms)
        if len(self.bins[flow]) == 1:
            self.schedule_flow(flow)

    def remove(self, flow: Seat, member: bytes) -> None:
        """Take a job out; an empty bin leaves its flow."""
        self.bins[flow].remove(member)
        if not self.bins[flow]:
            del self.bins[flow]
            self.ring.remove(flow)

    def charge(self, flow: Seat, count: int, weight: float) -> None:
        """Move a group's virtual time on by what ``count`` jobs cost it."""
        self.ring.add(flow, (self.ring.score(flow) or 0) + round(count / weight, 6))

    def next_flow(self, aged_before: float | None = None) -> Seat | None:
        """Return the flow that is served next, None when there is none.

        The lowest priority number goes first; every second turn is that of a lower priority whose next job was ready
        before ``aged_before``, those priorities in turn.
        """
        first, last = self.ring.first(), self.ring.last()
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

    def _lower(self, priority: int) -> list[Seat]:
        found = []
        while one := self.ring.first((priority + 1) * LEVEL):
            found.append(one[1])
            priority = one[1][0] - 48
        return found

    def _ready(self, flow: Seat) -> float:
        first = self.bins[flow].first()
        assert first is not None, "a flow in the ring has a bin with a job"
        return first[0]

    def __bool__(self) -> bool:
        """Return whether a flow is served."""
        return len(self.ring) > 0
