"""Select the next candidates by the rules, as far as one worker knows them.

Priorities, aging, weights of queues and pauses follow the rules. Limits hold among the jobs of this process alone:
while Redis is away, nothing counts the jobs of all workers. The caller holds the lock.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from sidestream.broker.limits import Gate, Gates, Limiter
from sidestream.job.names import limit_rule, tag
from sidestream.job.reference import limit_tag
from sidestream.job.rules import DEFAULT_WEIGHT, Limit, Rules, Scope
from sidestream.store.candidates import Candidate, PassedOver
from sidestream.store.job_row import JobRow


class Selector:
    """The rules in force, the turns of queues and priorities, and the holders of slots."""

    def __init__(self) -> None:
        self.rules = Rules()
        self._gates = Gates(self.rules)
        self._limiter = Limiter()
        #: By queue: its virtual time. The queue with the smallest is served next.
        self._times: dict[str, float] = {}
        #: Queues whose last turn went to an urgent job while an aged one waited: the next turn goes to an aged job.
        self._aged_next: set[str] = set()
        #: By tag: names of actions that were met, and limit keys that were handed out. Rules and rows contain names,
        #: references contain tags.
        self._actions: dict[bytes, str] = {}
        self._limit_keys: dict[bytes, str] = {}

    def follow(self, rules: Rules, running: Iterable[tuple[str, bytes]]) -> None:
        """Put ``rules`` in force; ``running`` as for :meth:`recount`."""
        self.rules = rules
        self._gates = Gates(rules)
        self.recount(running)

    def recount(self, running: Iterable[tuple[str, bytes]]) -> None:
        """Let limits count exactly the jobs ``running`` (queue, packed reference)."""
        self._limiter.recount([(reference, self._gates.of(queue, reference)) for queue, reference in running])

    def open_queues(self, queues: Iterable[str]) -> list[str]:
        """Return the queues that are neither paused nor full."""
        paused = {pause.queue for pause in self.rules.pauses if pause.queue is not None}
        return [
            queue
            for queue in queues
            if queue not in paused and self._limiter.closed(self._gates.of_queue(queue), _now_ms()) is None
        ]

    def passed_over(self, known: Collection[bytes] | None) -> PassedOver:
        """Return what may not be claimed now; ``known``: tags of the worker's actions, None: all."""
        pauses, limits, now = self.rules.pauses, self.rules.limits, _now_ms()
        actions = {pause.action for pause in pauses if pause.action is not None and pause.group is None}
        actions |= {
            name
            for (scope, name), limit in limits.items()
            if scope is Scope.ACTION and self._closed(Gate((scope, tag(name, 4)), limit), now)
        }
        if known is not None:
            actions |= {name for key, name in self._actions.items() if key not in known}
        return PassedOver(
            actions=actions,
            groups={pause.group for pause in pauses if pause.group is not None and pause.action is None},
            pairs={(pause.action, pause.group) for pause in pauses if pause.action and pause.group},
            limits=self._full_keys(now),
            limit_rules={name for (scope, name), limit in limits.items() if scope is Scope.KEY and _nobody(limit)},
        )

    def in_turn(self, found: Sequence[Candidate], limit: int) -> list[JobRow]:
        """Return the candidates in order: queues by weight, aged jobs every second turn."""
        lines: dict[str, tuple[list[JobRow], list[JobRow]]] = defaultdict(lambda: ([], []))
        for one in reversed(found):
            lines[one.job.queue][one.aged].append(one.job)
        weights = self.rules.queue_weights
        begin = min((self._times[queue] for queue in lines if queue in self._times), default=0.0)
        times = {queue: max(self._times.get(queue, begin), begin) for queue in lines}
        self._times = times
        chosen: list[JobRow] = []
        while lines and len(chosen) < limit:
            queue = min(lines, key=lambda one: (times[one], one))
            usual, aged = lines[queue]
            take_aged = len(aged) > 0 and (not usual or queue in self._aged_next)
            if aged and not take_aged:
                self._aged_next.add(queue)
            else:
                self._aged_next.discard(queue)
            chosen.append((aged if take_aged else usual).pop())
            times[queue] += 1 / weights.get(queue, DEFAULT_WEIGHT)
            if not usual and not aged:
                del lines[queue]
        return chosen

    def met(self, job: JobRow, action: bytes) -> None:
        """Remember the action behind a tag."""
        self._actions.setdefault(action, job.action)

    def take(self, job: JobRow, reference: bytes) -> bool:
        """Take the slots and tokens of its limits; return False if one of them is closed now."""
        gates = self._gates.of(job.queue, reference)
        if not gates:
            return True
        now = _now_ms()
        if self._limiter.closed(gates, now) is not None:
            return False
        self._limiter.take(reference, gates, now)
        if job.limit is not None:
            self._limit_keys[limit_tag(job.limit)] = job.limit
        return True

    def give_back(self, reference: bytes) -> None:
        """Free the slots of a job that no longer runs."""
        self._limiter.give_back(reference)

    def closed_gate(self, job: JobRow, reference: bytes) -> Gate | None:
        """Return the limit for which the job waits now."""
        return self._limiter.closed(self._gates.of(job.queue, reference), _now_ms())

    def holders(self, gate: Gate) -> list[bytes]:
        """Return the holders of the slots of a limit in this process."""
        return self._limiter.holders(gate)

    def opens_ms(self, gate: Gate) -> int:
        """Return when the rate limit has its next token; 0 without one or without such a limit."""
        return 0 if self._limiter.room(gate) == 0 else self._limiter.open_ms(gate, _now_ms())

    def _full_keys(self, now: int) -> list[str]:
        full = []
        for key, text in list(self._limit_keys.items()):
            limit = self.rules.limits.get((Scope.KEY, limit_rule(text)))
            gate = None if limit is None else Gate((Scope.KEY, key), limit)
            if gate is not None and self._closed(gate, now):
                full.append(text)
            elif gate is None or not self._limiter.holders(gate):
                del self._limit_keys[key]  # it is checked again when its next job is met
        return full

    def _closed(self, gate: Gate, now: int) -> bool:
        return self._limiter.closed((gate,), now) is not None


def _nobody(limit: Limit) -> bool:
    return limit.concurrency == 0 or limit.rate == 0


def _now_ms() -> int:
    return int(time.time() * 1000)
