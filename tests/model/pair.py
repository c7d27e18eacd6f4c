"""Make each call to two brokers and compare their answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from sidestream.broker.protocol import Delivery, Explanation, Publication
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.job.rules import Rules
from tests.contract.benches import MemoryBench, RedisBench
from tests.model.jobs import CONSUMERS, DB, LANES, PRIORITIES, make, rules, shown
from tests.support.broker_contract import LEASE_MS, RENEW_MS
from tests.support.servers import RedisServer


class Difference(AssertionError):
    """The two brokers did not answer alike; the text tells the calls before it."""


STEPS = {
    "publish": 50,
    "claim": 70,
    "settle": 40,
    "release": 35,
    "fail": 5,
    "discard": 6,
    "move": 6,
    "crash": 4,
    "reclaim": 10,
    "configure": 8,
    "lose": 1,
    "look": 15,
    "advance": 50,
}
"""The steps and how often each is taken."""


class Pair:
    """The memory broker and the Redis broker after the same calls."""

    def __init__(self, server: RedisServer, random: Random, *, thorough: bool = False) -> None:
        self.random = random
        self.thorough = thorough  # every place is compared after every step
        self.benches: list[MemoryBench] = [MemoryBench(), RedisBench(server)]
        self.benches[1].clock.ms = self.benches[0].clock.ms
        self.held: list[list[Delivery]] = [[], []]
        self.jobs: dict[int, Publication] = {}
        self.rules = Rules()
        self.log: list[str] = []
        self._begin()

    def close(self) -> None:
        for bench in self.benches:
            bench.close()

    def step(self, name: str) -> None:
        """Take one step and compare."""
        work: Callable[[], None] = getattr(self, name)
        work()
        if self.thorough:
            self._same_places()

    def same(self, what: str, answers: list[object]) -> None:
        self.log.append(f"{what} -> {answers[0]!r:.900}")
        if answers[0] != answers[1]:
            if whole := os.environ.get("MODEL_LOG"):
                Path(whole).write_text("\n".join(self.log))
            raise Difference("\n".join([*self.log[-40:], f"but Redis said {answers[1]!r:.900}"]))

    def _begin(self) -> None:
        for bench in self.benches:
            bench.broker.begin_generation()
            for worker, known in CONSUMERS.items():
                bench.broker.announce(worker, LANES, "{}", 3_600_000, known)

    def publish(self) -> None:
        random, now = self.random, self.benches[0].now()
        jobs = []
        for _ in range(random.choice((1, 1, 3, 10))):
            number = random.randrange(1, 120)
            if number not in self.jobs:
                self.jobs[number] = make(random, number)
            job = self.jobs[number]
            due = random.choice((0, 0, 0, now - 50, now + random.randrange(1, 3000)))
            attempted = job.payload is None and random.random() < 0.3
            edited = job.payload is None and random.random() < 0.2
            if edited:
                job = self.jobs[number] = job._replace(priority=random.choice(PRIORITIES))
            gone = job.payload is None and random.random() < 0.1
            marks = {"attempted": attempted, "edited": edited, "withdrawn": gone}
            jobs.append(job if job.payload else job._replace(due_ms=due, **marks))
        # Whose head moves first in one call is fixed within a lane alone: Redis works lane by lane.
        jobs.sort(key=lambda job: job.lane)
        force = random.random() < 0.2
        described = [
            (shown(job), job.due_ms and job.due_ms - now, job.attempted, job.edited, job.withdrawn) for job in jobs
        ]
        self.same(
            f"publish {described} {force=}",
            [bench.broker.publish(jobs, force=force) for bench in self.benches],
        )

    def claim(self) -> None:
        random = self.random
        worker = random.choice(("any", "any", "new", "old"))
        free, prefetch = random.choice((0, 1, 2, 3, 12)), random.choice((0, 0, 0, 5))
        lanes = random.choice((LANES, LANES, LANES[:1], LANES[1:]))
        found = [bench.broker.claim(worker, lanes, free=free, prefetch=prefetch) for bench in self.benches]
        plain = [[(shown(one), one.ready_ms, *one[4:], one.lease.deliveries) for one in some] for some in found]
        self.same(f"claim {worker} {[one[17:] for one in lanes]} {free=} {prefetch=}", plain)
        for held, new in zip(self.held, found, strict=True):
            held += new

    def _pick(self) -> list[Delivery]:
        at = self.random.randrange(len(self.held[0]))
        keep = self.random.random() < 0.1  # a lease that is used again is lost
        return [held[at] if keep else held.pop(at) for held in self.held]

    def settle(self) -> None:
        if self.held[0]:
            many = min(len(self.held[0]), self.random.choice((1, 1, 2, 4)))
            picks = [self._pick() for _ in range(many)]
            ones = [list({pick[side].reference: pick[side] for pick in picks}.values()) for side in (0, 1)]
            lost = [len(b.broker.settle(some)) for b, some in zip(self.benches, ones, strict=True)]
            self.same(f"settle {[shown(one) for one in ones[0]]}", lost)

    def release(self) -> None:
        if self.held[0]:
            random, ones = self.random, self._pick()
            options = {
                "delay_ms": random.choice((0, 0, None, random.randrange(1, 2000))),
                "blocked_by": random.choice((None, None, None, 1)),
                "charge_attempt": random.random() < 0.2,
                "charge_crash": random.random() < 0.1,
                "count": random.random() < 0.7,
                "unstarted": random.random() < 0.3,
            }
            counts = [b.broker.release(one, Release(**options)) for b, one in zip(self.benches, ones, strict=True)]
            self.same(f"release {shown(ones[0])} {options}", counts)

    def fail(self) -> None:
        if self.held[0]:
            ones = self._pick()
            self.same(
                f"fail {shown(ones[0])}",
                [b.broker.fail(one, "no") for b, one in zip(self.benches, ones, strict=True)],
            )

    def _a_row(self) -> Publication | None:
        rows = [job for job in self.jobs.values() if job.payload is None]
        return self.random.choice(rows) if rows else None

    def discard(self) -> None:
        if job := self._a_row():
            self.same(f"discard {shown(job)}", [bench.broker.discard(job) for bench in self.benches])

    def move(self) -> None:
        if job := self._a_row():
            priority = self.random.randrange(10)
            self.same(
                f"move {shown(job)} to {priority}", [bench.broker.reprioritize(job, priority) for bench in self.benches]
            )

    def crash(self) -> None:
        """A worker dies: what it held is nobody's until it is reclaimed."""
        worker = self.random.choice(list(CONSUMERS))
        self.log.append(f"crash {worker}")
        for held in self.held:
            held[:] = [one for one in held if one.lease.worker != worker]

    def reclaim(self) -> None:
        worker = self.random.choice(list(CONSUMERS))
        found = [bench.broker.reclaim(worker, LANES, lease_ms=LEASE_MS, grace_ms=RENEW_MS) for bench in self.benches]
        for some, held in zip(found, self.held, strict=True):
            taken = sorted((one for one, _ in some.deliveries), key=lambda one: one.reference)
            held[:] = [one for one in held if one.reference not in {new.reference for new in taken}] + taken
        self.same("reclaim", [sorted((shown(one), loser) for one, loser in some.deliveries) for some in found])

    def configure(self) -> None:
        self.rules = rules(self.random, self.rules.version + 1)
        self.same(f"configure {self.rules}", [bench.broker.configure(DB, self.rules) for bench in self.benches])
        if self.random.random() < 0.7:
            self.log.append("mark_synced")
            for bench in self.benches:
                bench.broker.mark_synced(DB)

    def lose(self) -> None:
        """Everything is emptied; those that live state what they hold; rules, rows and the mark come by themselves."""
        self.log.append("lose everything")
        for bench in self.benches:
            bench.wipe()
        self._begin()
        for worker in CONSUMERS:
            mine = [
                list({one.reference: one for one in held if one.lease.worker == worker}.values()) for held in self.held
            ]
            ours = [b.broker.reassert(worker, some) for b, some in zip(self.benches, mine, strict=True)]
            for held, some in zip(self.held, ours, strict=True):
                held[:] = [one for one in held if one.lease.worker != worker] + some
            self.same(f"reassert by {worker}", [[shown(one) for one in some] for some in ours])

    def look(self) -> None:
        rows = self._same_places()
        for job in self.random.sample(rows, min(3, len(rows))):
            self.same(f"explain {shown(job)}", [_plain(bench.broker.explain(job)) for bench in self.benches])

    def _same_places(self) -> list[Publication]:
        rows = [job for job in self.jobs.values() if job.payload is None]
        places = [bench.broker.locate(rows) for bench in self.benches]
        wrong = [at for at, (one, other) in enumerate(zip(*places, strict=True)) if one is not other]
        self.same("locate", [[(shown(rows[at]), some[at].value) for at in wrong] for some in places])
        self.same("published", [bench.broker.published(DB, 0).rstrip(b"\0") for bench in self.benches])
        return rows

    def advance(self) -> None:
        ms = self.random.choice((1, 5, 40, 300, 1100, 6000))
        self.log.append(f"advance {ms}")
        for bench in self.benches:
            bench.advance(ms)


def _plain(found: Explanation) -> tuple[object, ...]:
    """Of many holders each broker names some ten."""
    holders = sorted(str(Reference.unpack(one).id) for one in found.holders) if len(found.holders) < 10 else ["many"]
    return found.place, found.scope, holders, found.until_ms, found.worker, found.rank
