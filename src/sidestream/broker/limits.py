"""Limits held in one process: who has a slot of what, and how full each token bucket is. For one database.

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
"""Above this there is a token: sums of fractions fall a little short of 1 (the same in Redis: limits.lua)."""
Count = tuple[Scope, bytes]
"""What is counted: a scope and b"", the queue's name, the action's tag (4 bytes) or the limit key's tags (12 bytes)."""


class Gate(NamedTuple):
    """One limit that a job has to pass."""

    counted: Count
    limit: Limit


class Gates:
    """The limits of a database's rules, found by what a reference says."""

    def __init__(self, rules: Rules) -> None:
        """Index ``rules``; they are not changed afterwards."""
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
        """Return the limits that every job of ``queue`` has to pass: of everything, then of the queue."""
        gate = self._queues.get(queue)
        return (*self._global, gate) if gate else self._global

    def of_job(self, reference: bytes) -> tuple[Gate, ...]:
        """Return those that only such jobs as the packed ``reference`` have to pass: of its action, then of its key."""
        found = []
        if self._actions and (gate := self._actions.get(action_of(reference))):
            found.append(gate)
        if self._keys and (key := Reference.unpack(reference).limit) and (limit := self._keys.get(key[:4])):
            found.append(Gate((Scope.KEY, key), limit))
        return tuple(found)

    def of(self, queue: str, reference: bytes) -> tuple[Gate, ...]:
        """Return every limit that a job has to pass."""
        return self.of_queue(queue) + self.of_job(reference)


class Limiter:
    """Slots are taken all or none, then tokens; a slot is a reference in a set, never a number. Not locked."""

    def __init__(self) -> None:
        """Begin with nobody holding anything and every bucket full."""
        self._slots: dict[Count, set[bytes]] = defaultdict(set)
        self._of: dict[bytes, tuple[Count, ...]] = {}
        #: Tokens, the ms at which they were counted, and the rate and burst that governed then.
        self._buckets: dict[Count, tuple[float, int, float, int]] = {}

    def closed(self, gates: Sequence[Gate], now_ms: int) -> Gate | None:
        """Return the first of ``gates`` that lets nobody through now, slots before tokens; None when all are open."""
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
        """Take the slots without asking and without tokens: the job runs already."""
        counts = tuple(gate.counted for gate in gates if gate.limit.concurrency is not None)
        if counts:
            self._of[reference] = counts
            for count in counts:
                self._slots[count].add(reference)

    def give_back(self, reference: bytes) -> tuple[Count, ...]:
        """Free the slots of ``reference``, if it has any, and return what they were of."""
        counts = self._of.pop(reference, ())
        for count in counts:
            self._slots[count].discard(reference)
            if not self._slots[count]:
                del self._slots[count]
        return counts

    def recount(self, held: Iterable[tuple[bytes, Sequence[Gate]]]) -> None:
        """Count the slots anew from all jobs that run, after the rules changed: new limits know them, old ones go."""
        self._slots.clear()
        self._of.clear()
        for reference, gates in held:
            self.hold(reference, gates)

    def room(self, gate: Gate) -> float:
        """Return how many more may run at once: 0 when it is full, infinite without a limit."""
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
        # One that was full by the numbers of then is full (Redis has forgotten it meanwhile: limits.lua).
        if left + passed * old_rate >= old_burst - 0.000001:
            return float(burst)
        return min(float(burst), left + passed * rate)

    def open_ms(self, gate: Gate, now_ms: int) -> int:
        """Return the Unix ms of the gate's next token (now, if there is one); 0 when none will ever come."""
        rate = gate.limit.rate
        if not rate:
            return 0 if rate == 0 else now_ms
        tokens = self.tokens(gate, now_ms)
        return now_ms if tokens > _ONE_TOKEN else math.ceil(now_ms + (1 - tokens) * 1000 / rate)

    def holders(self, gate: Gate) -> list[bytes]:
        """Return the references that hold the gate's slots, in order."""
        return sorted(self._slots.get(gate.counted, ()))
