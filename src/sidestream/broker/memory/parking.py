"""Waiting for a limit, the end of a pause, or somebody who knows the action: parked, and woken in bounded lots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sidestream.broker.limits import Count, Gate, Limiter
from sidestream.broker.memory.contents import Contents, Governing, Job, Parked
from sidestream.broker.protocol import Explanation, Place
from sidestream.job.rules import Rules, Scope

LOT = 100
"""Most jobs that are woken, parked, promoted or taken over in one call."""
_TASKS = 20
_A_SECOND = 1000


class Reason(NamedTuple):
    """Why a job may not run now: the pool that it waits in, or, without one, that its whole lane waits."""

    scope: str
    place: Place = Place.LIMITED
    pool: str = ""
    #: When it may go on by itself; 0 when somebody else decides.
    until_ms: int = 0


class Parking:
    """Who may not run and why, and who may again."""

    def __init__(self, contents: Contents) -> None:
        """Work on ``contents``."""
        self._contents = contents

    def configure(self, database: str, rules: Rules) -> bool:
        """Put rules in force, count slots anew and look at everything parked; False when as new ones are in force."""
        contents = self._contents
        old = contents.rules.get(database)
        if old and old.rules.version >= rules.version:
            return False
        new = contents.rules[database] = Governing(rules, old.limiter if old else Limiter())
        running = [contents.jobs[one] for lane, held in contents.held.items() if lane[:16] == database for one in held]
        new.limiter.recount((job.reference, new.gates.of(job.queue, job.reference)) for job in running)
        for lane, pool in contents.ready.items():
            if old and lane[:16] == database:
                for flow in [one for one in pool.bins if one[1:] in old.groups - new.groups]:
                    pool.schedule_flow(flow)
        self.look_at_all(database)
        return True

    def look_at_all(self, database: str) -> None:
        """Work off what is due, then let the next claims look at every parked pool of a database."""
        self.work_off()
        for pool in self._contents.parked.values():
            if pool.database == database and pool.place is not Place.UNROUTED:
                self._contents.wakes.add(pool.name.encode(), self._contents.now())

    def reason(self, job: Job, known: frozenset[bytes] | None) -> Reason | None:
        """Return why a job of a served lane may not be handed to whoever knows these actions; None when it may."""
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
        """Return whether limits concern a job that nothing but a limit keeps, so that it is not held in advance."""
        if reason and reason.place is not Place.LIMITED:
            return False
        return bool(self._contents.rules[job.database].gates.of(job.queue, job.reference))

    def park(self, job: Job, reason: Reason) -> None:
        """Let a job wait for its reason."""
        pool = self._contents.park(job, reason.pool, reason.place, reason.scope)
        if reason.until_ms:
            self._look_at(pool, min(reason.until_ms, self._contents.wakes.score(pool.name.encode()) or math.inf))

    def admit(self, job: Job) -> None:
        """Take the slots and tokens of a job without a reason to wait."""
        rules = self._contents.rules[job.database]
        rules.limiter.take(job.reference, rules.gates.of(job.queue, job.reference), self._contents.now())

    def hold(self, job: Job) -> None:
        """Take the slots of a job that runs already."""
        if rules := self._contents.rules.get(job.database):
            rules.limiter.hold(job.reference, rules.gates.of(job.queue, job.reference))

    def free(self, job: Job) -> None:
        """Give a job's slots back and wake whoever waits for one."""
        rules = self._contents.rules.get(job.database)
        for counted in rules.limiter.give_back(job.reference) if rules else ():
            if pool := self._contents.parked.get(_limit_pool(job.database, counted)):
                self._wake_limit(pool, 1)

    def wake_known(self, lanes: Sequence[str], known: frozenset[bytes] | None) -> None:
        """Wake, in these lanes, jobs whose action is among the known ones."""
        for pool in list(self._contents.parked.values()):
            job = pool.sample
            if pool.place is Place.UNROUTED and job.lane in lanes and (known is None or job.named.action in known):
                self._wake(pool, LOT)

    def work_off(self) -> None:
        """Wake what is due, at most 100 jobs."""
        contents, room = self._contents, LOT
        for name in contents.wakes.upto(contents.now(), _TASKS):
            pool = contents.parked[name.decode()]
            if room and pool.place is Place.LIMITED:
                room -= self._wake_limit(pool, room)
            elif room and self._paused(pool):
                contents.wakes.remove(name)
            elif room:
                room -= self._wake(pool, room)

    def holders(self, job: Job, scope: str) -> tuple[bytes, ...]:
        """Return who holds the slots that a job waits for, at most ten."""
        rules = self._contents.rules[job.database]
        for gate in rules.gates.of(job.queue, job.reference):
            if gate.counted[0].value == scope:
                return tuple(rules.limiter.holders(gate)[:10])
        return ()

    def explain(self, job: Job) -> Explanation:
        """Say what a job that is ready or parked waits for."""
        if isinstance(job.pool, Parked):
            until = int(self._contents.wakes.score(job.pool.name.encode()) or 0)
            holders = self.holders(job, job.pool.scope) if job.place is Place.LIMITED else ()
            return Explanation(job.place, job.pool.scope, holders, until if job.place is Place.LIMITED else 0)
        assert job.pool is not None
        rules, rank = self._contents.rules.get(job.database), job.pool.bins[job.flow].rank(job.reference)
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

    def _look_at(self, pool: Parked, at_ms: float | None) -> None:
        if at_ms:
            self._contents.wakes.add(pool.name.encode(), at_ms)
        else:
            self._contents.wakes.remove(pool.name.encode())

    def _wake_limit(self, pool: Parked, most: int) -> int:
        """Wake as many as the limit has room for.

        Those that do not use it (their queue is paused, nobody serves it) must not keep the others: it is looked at
        again a second later.
        """
        now, rules = self._contents.now(), self._contents.rules[pool.database]
        gates = rules.gates.of_job(pool.sample.reference)
        gate = next((one for one in gates if _limit_pool(pool.database, one.counted) == pool.name), None)
        if gate is None:  # no limit any more: the rest follows in the next call
            woken = self._wake(pool, most)
            if pool:
                self._look_at(pool, now)
            return woken
        full = self._full(rules, pool.database, gate)
        tokens = rules.limiter.tokens(gate, now)
        room = 0 if full else int(min(most, rules.limiter.room(gate), tokens + 0.000001))
        woken = self._wake(pool, room)
        if pool and full:
            self._look_at(pool, None)
        elif pool and room == 0:
            self._look_at(pool, rules.limiter.open_ms(gate, now))
        elif pool:
            a_token = math.ceil(now + _A_SECOND / gate.limit.rate) if gate.limit.rate else math.inf
            self._look_at(pool, max(now + 1, min(now + _A_SECOND, a_token)))
        return woken

    def _wake(self, pool: Parked, count: int) -> int:
        """Let up to ``count`` go on in their lanes, in the pool's own fair order; return how many did."""
        woken = 0
        while woken < count and (flow := pool.next_flow()):
            first = pool.bins[flow].first()
            assert first is not None, "a flow in the ring has a bin with a job"
            job = self._contents.jobs[first[1]]
            self._contents.unplace(job)
            self._contents.place_at(job, 0)
            if flow in pool.ring:
                pool.charge(flow, 1, 1)
            woken += 1
        return woken


def _limit_pool(database: str, counted: Count) -> str:
    return f"l{database}:{counted[0][0]}{counted[1].hex()}"
