"""Park jobs that are limited, paused or unrouted, and wake them in bounded batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sidestream.broker.limits import Count, Gate, Limiter
from sidestream.broker.memory.contents import Contents, Governing, Job, Parked
from sidestream.broker.protocol import Explanation, Place
from sidestream.job.rules import Rules, Scope

BATCH = 100
"""Most jobs that one call unparks, parks, promotes or takes over."""
_TASKS = 20
_A_SECOND = 1000


class Reason(NamedTuple):
    """The reason why a job may not run now, and its pool; without a pool, its lane waits."""

    scope: str
    place: Place = Place.LIMITED
    pool: str = ""
    #: The ms at which it may run by itself; 0 if that depends on other events.
    until_ms: int = 0


class Parking:
    """Decides which jobs may not run, and unparks them when they may."""

    def __init__(self, contents: Contents) -> None:
        """Work on ``contents``."""
        self._contents = contents

    def configure(self, database: str, rules: Rules) -> bool:
        """Put rules in force and recount the slots; False if rules at least as new are in force."""
        contents = self._contents
        old = contents.rules.get(database)
        if old and old.rules.version >= rules.version:
            return False
        new = contents.rules[database] = Governing(rules, old.limiter if old else Limiter())
        running = [
            contents.jobs[one] for lane, held in contents.leased.items() if lane[:16] == database for one in held
        ]
        new.limiter.recount((job.reference, new.gates.of(job.queue, job.reference)) for job in running)
        for lane, pool in contents.ready.items():
            if old and lane[:16] == database:
                for flow in [one for one in pool.flows if one[1:] in old.groups - new.groups]:
                    pool.schedule_flow(flow)
        self.check_all(database)
        return True

    def check_all(self, database: str) -> None:
        """Run the due timers, then let the next claims check every parked pool of a database."""
        self.run_timers()
        for pool in self._contents.parked.values():
            if pool.database == database and pool.place is not Place.UNROUTED:
                self._contents.timers.add(pool.name.encode(), self._contents.now())

    def reason(self, job: Job, known: frozenset[bytes] | None) -> Reason | None:
        """Return why a job may not go to a worker that knows these actions; None if it may."""
        rules, action = self._contents.rules[job.database], job.named.action
        if known is not None and action not in known:
            return Reason("", Place.UNROUTED, f"u{job.lane}:{action.hex()}")
        if action in rules.actions:
            return Reason("action", Place.PAUSED, f"p{job.database}:a{action.hex()}")
        if (action, job.named.group) in rules.pairs:
            return Reason("action of group", Place.PAUSED, f"p{job.database}:x{(action + job.named.group).hex()}")
        gates = rules.gates.of(job.queue, job.reference)
        gate = self._closed(rules, job.database, gates)
        if gate is None:
            return None
        scope = gate.counted[0]
        until = 0 if self._full(rules, job.database, gate) else rules.limiter.open_ms(gate, self._contents.now())
        pool = _limit_pool(job.database, gate.counted) if scope in (Scope.ACTION, Scope.KEY) else ""
        return Reason(scope.value, Place.LIMITED, pool, until)

    def counted(self, job: Job, reason: Reason | None) -> bool:
        """Return whether a job has limits and is therefore not prefetched."""
        if reason and reason.place is not Place.LIMITED:
            return False
        return bool(self._contents.rules[job.database].gates.of(job.queue, job.reference))

    def park(self, job: Job, reason: Reason) -> None:
        """Park a job for this reason."""
        pool = self._contents.park(job, reason.pool, reason.place, reason.scope)
        if reason.until_ms:
            self._set_timer(pool, min(reason.until_ms, self._contents.timers.score(pool.name.encode()) or math.inf))

    def admit(self, job: Job) -> None:
        """Take the slots and tokens of a job that may run."""
        rules = self._contents.rules[job.database]
        rules.limiter.take(job.reference, rules.gates.of(job.queue, job.reference), self._contents.now())

    def hold(self, job: Job) -> None:
        """Take the slots of a job that runs already."""
        if rules := self._contents.rules.get(job.database):
            rules.limiter.hold(job.reference, rules.gates.of(job.queue, job.reference))

    def free(self, job: Job) -> None:
        """Free the slots of a job and unpark jobs that wait for them."""
        rules = self._contents.rules.get(job.database)
        for counted in rules.limiter.give_back(job.reference) if rules else ():
            if pool := self._contents.parked.get(_limit_pool(job.database, counted)):
                self._unpark_limited(pool, 1)

    def unpark_routed(self, lanes: Sequence[str], known: frozenset[bytes] | None) -> None:
        """Unpark the unrouted jobs of these lanes whose actions are known."""
        for pool in list(self._contents.parked.values()):
            job = pool.sample
            if pool.place is Place.UNROUTED and job.lane in lanes and (known is None or job.named.action in known):
                self._unpark(pool, BATCH)

    def run_timers(self) -> None:
        """Run the timers that are due, for at most 100 jobs."""
        contents, room = self._contents, BATCH
        for name in contents.timers.up_to(contents.now(), _TASKS):
            pool = contents.parked[name.decode()]
            if room and pool.place is Place.LIMITED:
                room -= self._unpark_limited(pool, room)
            elif room and self._paused(pool):
                contents.timers.remove(name)
            elif room:
                room -= self._unpark(pool, room)

    def holders(self, job: Job, scope: str) -> tuple[bytes, ...]:
        """Return the holders of the slots that a job waits for, at most ten."""
        rules = self._contents.rules[job.database]
        for gate in rules.gates.of(job.queue, job.reference):
            if gate.counted[0].value == scope:
                return tuple(rules.limiter.holders(gate)[:10])
        return ()

    def explain(self, job: Job) -> Explanation:
        """Say what a job that is ready or parked waits for."""
        if isinstance(job.pool, Parked):
            until = int(self._contents.timers.score(job.pool.name.encode()) or 0)
            holders = self.holders(job, job.pool.scope) if job.place is Place.LIMITED else ()
            return Explanation(job.place, job.pool.scope, holders, until if job.place is Place.LIMITED else 0)
        assert job.pool is not None
        rules, rank = self._contents.rules.get(job.database), job.pool.flows[job.flow].rank(job.reference)
        if rules and job.queue in rules.queues:
            return Explanation(Place.PAUSED, "queue", rank=rank)
        if rules and job.named.group in rules.groups:
            return Explanation(Place.PAUSED, "group", rank=rank)
        gate = self._closed(rules, job.database, rules.gates.of_queue(job.queue)) if rules else None
        if rules and gate:
            full = self._full(rules, job.database, gate)
            until = 0 if full else rules.limiter.open_ms(gate, self._contents.now())
            holders = self.holders(job, gate.counted[0].value) if full else ()
            return Explanation(Place.LIMITED, gate.counted[0].value, holders, until, rank=rank)
        return Explanation(Place.READY, rank=rank)

    def _closed(self, rules: Governing, database: str, gates: tuple[Gate, ...]) -> Gate | None:
        if database not in self._contents.synced:
            # Supervisors are still stating what they hold.
            for gate in gates:
                if gate.limit.concurrency is not None:
                    return gate
        return rules.limiter.closed(gates, self._contents.now())

    def _full(self, rules: Governing, database: str, gate: Gate) -> bool:
        unstated = gate.limit.concurrency is not None and database not in self._contents.synced
        return unstated or rules.limiter.room(gate) == 0

    def _paused(self, pool: Parked) -> bool:
        rules, named = self._contents.rules[pool.database], pool.sample.named
        return named.action in rules.actions if pool.scope == "action" else (named.action, named.group) in rules.pairs

    def _set_timer(self, pool: Parked, at_ms: float | None) -> None:
        if at_ms:
            self._contents.timers.add(pool.name.encode(), at_ms)
        else:
            self._contents.timers.remove(pool.name.encode())

    def _unpark_limited(self, pool: Parked, most: int) -> int:
        """Unpark as many jobs as the limit admits.

        Jobs that then cannot use it (their queue is paused or has no worker) must not keep back the others, so the pool
        is due again a second later.
        """
        now, rules = self._contents.now(), self._contents.rules[pool.database]
        gates = rules.gates.of_job(pool.sample.reference)
        gate = next((one for one in gates if _limit_pool(pool.database, one.counted) == pool.name), None)
        if gate is None:  # no longer limited: the rest follows in the next call
            unparked = self._unpark(pool, most)
            if pool:
                self._set_timer(pool, now)
            return unparked
        full = self._full(rules, pool.database, gate)
        tokens = rules.limiter.tokens(gate, now)
        room = 0 if full else int(min(most, rules.limiter.room(gate), tokens + 0.000001))
        unparked = self._unpark(pool, room)
        if pool and full:
            self._set_timer(pool, None)
        elif pool and room == 0:
            self._set_timer(pool, rules.limiter.open_ms(gate, now))
        elif pool:
            a_token = math.ceil(now + _A_SECOND / gate.limit.rate) if gate.limit.rate else math.inf
            self._set_timer(pool, max(now + 1, min(now + _A_SECOND, a_token)))
        return unparked

    def _unpark(self, pool: Parked, count: int) -> int:
        """Move up to ``count`` jobs, in the fair order of the pool, to their lanes; return how many."""
        unparked = 0
        while unparked < count and (flow := pool.next_flow()):
            first = pool.flows[flow].first()
            assert first is not None, "a scheduled flow has a job"
            job = self._contents.jobs[first[1]]
            self._contents.unplace(job)
            self._contents.place_at(job, 0)
            if flow in pool.schedule:
                pool.charge(flow, 1, 1)
            unparked += 1
        return unparked


def _limit_pool(database: str, counted: Count) -> str:
    return f"l{database}:{counted[0][0]}{counted[1].hex()}"
