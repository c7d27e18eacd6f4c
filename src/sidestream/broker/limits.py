"""Count slots and rate tokens of limits in one process, for one database.

The memory broker keeps its limits here, and the PostgreSQL broker those of its own worker while Redis is away.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sidestream.job.names import tag
from sidestream.job.reference import Reference, action_of
from sidestream.job.rules import Limit, Rules, Scope

_ONE_TOKEN = 0.999999
"""A bucket above this has a token: sums of fractions fall a little short of 1 (limits.lua does the same)."""
Count = tuple[Scope, bytes]
"""What a limit counts: a scope, and b"", the queue, the action tag (4 bytes) or the limit tags (12 bytes)."""


class Gate(NamedTuple):
    """A limit that a job must pass."""

    counted: Count
    limit: Limit


class Gates:
    """The limits in the rules of a database, by the fields of a reference."""

    def __init__(self, rules: Rules) -> None:
        """Index ``rules``, which do not change afterwards."""
        self._global: tuple[Gate, ...] = ()
        self._queues: dict[str, Gate] = {}
        self._actions: dict[bytes, Gate] = {}
        self._keys: dict[bytes, Limit] = {}
        for (scope, name), limit in rules.limits.items():
            if limit.concurrency is None and limit.rate is None:
                continue
            if scope is Scope.GLOBAL:
                self._global = (Gate((scope, b""), limit),)
            elif scope is Scope.QUEUE:
                self._queues[name] = Gate((scope, name.encode()), limit)
            elif scope is Scope.ACTION:
                self._actions[tag(name, 4)] = Gate((scope, tag(name, 4)), limit)
            else:
                self._keys[tag(name, 4)] = limit

    def of_queue(self, queue: str) -> tuple[Gate, ...]:
        """Return the limits of every job of ``queue``: the global one, then that of the queue."""
        gate = self._queues.get(queue)
        return (*self._global, gate) if gate else self._global

    def of_job(self, reference: bytes) -> tuple[Gate, ...]:
        """Return the limits of the packed ``reference``: of its action, then of its limit key."""
        found = []
        if self._actions and (gate := self._actions.get(action_of(reference))):
            found.append(gate)
        if self._keys and (key := Reference.unpack(reference).limit) and (limit := self._keys.get(key[:4])):
            found.append(Gate((Scope.KEY, key), limit))
        return tuple(found)

    def of(self, queue: str, reference: bytes) -> tuple[Gate, ...]:
        """Return every limit that a job must pass."""
        return self.of_queue(queue) + self.of_job(reference)


class Limiter:
    """Takes the slots of all limits of a job or none, then tokens. The caller holds the lock.

    A slot is a reference in a set, not a number, so that taking or freeing it twice makes no difference.
    """

    def __init__(self) -> None:
        """Begin with all slots free and every bucket full."""
        self._slots: dict[Count, set[bytes]] = defaultdict(set)
        self._of: dict[bytes, tuple[Count, ...]] = {}
        #: Tokens, the ms at which they were counted, and the rate and burst that governed then.
        self._buckets: dict[Count, tuple[float, int, float, int]] = {}

    def closed(self, gates: Sequence[Gate], now_ms: int) -> Gate | None:
        """Return the first closed gate of ``gates``, concurrency before rate, or None."""
        for gate in gates:
            if self.room(gate) == 0:
                return gate
        for gate in gates:
            if gate.limit.rate is not None and self.tokens(gate, now_ms) <= _ONE_TOKEN:
                return gate
        return None

    def take(self, reference: bytes, gates: Sequence[Gate], now_ms: int) -> None:
        """Take a slot and a token of each of ``gates``, which :meth:`closed` found open."""
        self.hold(reference, gates)
        for gate in gates:
            if gate.limit.rate is not None:
                left = round(self.tokens(gate, now_ms) - 1, 6)
                self._buckets[gate.counted] = (left, now_ms, gate.limit.rate, gate.limit.burst)

    def hold(self, reference: bytes, gates: Sequence[Gate]) -> None:
        """Take the slots, even of full limits, and no tokens: the job runs already."""
        counts = tuple(gate.counted for gate in gates if gate.limit.concurrency is not None)
        if counts:
            self._of[reference] = counts
            for count in counts:
                self._slots[count].add(reference)

    def give_back(self, reference: bytes) -> tuple[Count, ...]:
        """Free the slots of ``reference``, if it has any, and return what they counted."""
        counts = self._of.pop(reference, ())
        for count in counts:
            self._slots[count].discard(reference)
            if not self._slots[count]:
                del self._slots[count]
        return counts

    def recount(self, held: Iterable[tuple[bytes, Sequence[Gate]]]) -> None:
        """Recount the slots from all running jobs, after the rules changed."""
        self._slots.clear()
        self._of.clear()
        for reference, gates in held:
            self.hold(reference, gates)

    def room(self, gate: Gate) -> float:
        """Return how many more jobs may run at once: 0 if it is full, infinite without a limit."""
        if gate.limit.concurrency is None:
            return math.inf
        return max(0, gate.limit.concurrency - len(self._slots.get(gate.counted, ())))

    def tokens(self, gate: Gate, now_ms: int) -> float:
        """Return how many starts the gate's rate allows now; infinite without a rate."""
        rate, burst = gate.limit.rate, gate.limit.burst
        if rate is None:
            return math.inf
        if rate == 0:
            return 0
        if gate.counted not in self._buckets:
            return float(burst)
        left, at, old_rate, old_burst = self._buckets[gate.counted]
        if at > now_ms:  # the clock was set back: it is counted from now
            at = now_ms
            self._buckets[gate.counted] = (left, at, old_rate, old_burst)
        passed = (now_ms - at) / 1000
        # A bucket that became full by the numbers in force then is full (reclaim.lua has forgotten it by now).
        if left + passed * old_rate >= old_burst - 0.000001:
            return float(burst)
        return min(float(burst), left + passed * rate)

    def open_ms(self, gate: Gate, now_ms: int) -> int:
        """Return the Unix ms of the gate's next token (now, if it has one); 0 if it never has one."""
        rate = gate.limit.rate
        if not rate:
            return 0 if rate == 0 else now_ms
        tokens = self.tokens(gate, now_ms)
        return now_ms if tokens > _ONE_TOKEN else math.ceil(now_ms + (1 - tokens) * 1000 / rate)

    def holders(self, gate: Gate) -> list[bytes]:
        """Return the references that hold the gate's slots, in order."""
        return sorted(self._slots.get(gate.counted, ()))
