"""The memory broker and the Redis broker answer alike to the same calls, however they are mixed."""

from __future__ import annotations

from random import Random
from uuid import UUID

import pytest

from sidestream.broker.protocol import Delivery, Publication, lane
from sidestream.job.reference import Reference, direct_reference, row_reference
from sidestream.testing.broker_contract import LEASE_MS, RENEW_MS
from sidestream.testing.servers import RedisServer
from tests.contract.benches import MemoryBench, RedisBench

DB = MemoryBench.database
LANES = [lane(DB, "one"), lane(DB, "two")]
KEYS = (None, None, "a", "b", "c")
STEPS = 1200


def shown(job: Delivery | Publication) -> str:
    """Return what a person can compare: the number, and a letter when it has a key."""
    named = Reference.unpack(job.reference)
    number = f"direct {named.uuid.int}" if named.uuid else str(named.id)
    return f"{number}{'' if job.reference.endswith(bytes(8)) else ' ' + named.key.hex()[:3]} in {job.lane[17:]}"


class Pair:
    """One call, two brokers, one answer."""

    def __init__(self, benches: list[MemoryBench], random: Random) -> None:
        self.benches, self.random = benches, random
        self.held: list[list[Delivery]] = [[] for _ in benches]
        self.jobs: dict[int, Publication] = {}
        self.log: list[str] = []

    def same(self, what: str, answers: list[object]) -> None:
        self.log.append(f"{what} -> {answers[0]!r:.900}")
        assert answers[0] == answers[1], "\n".join([*self.log[-25:], f"but the second said {answers[1]!r:.900}"])

    def publish(self) -> None:
        random, now = self.random, self.benches[0].now()
        jobs = []
        for _ in range(random.choice((1, 1, 3, 10))):
            number = random.randrange(1, 120)
            if number not in self.jobs:
                key, home = random.choice(KEYS), random.choice(LANES)
                if number % 5 == 0:
                    packed = direct_reference(UUID(int=number), "act", key, DB).pack()
                    self.jobs[number] = Publication(packed, home, 0, b"bytes %d" % number)
                else:
                    self.jobs[number] = Publication(row_reference(DB, number, "act", key).pack(), home)
            due = random.choice((0, 0, 0, now - 50, now + random.randrange(1, 3000)))
            job = self.jobs[number]
            attempted = job.payload is None and random.random() < 0.3
            jobs.append(job if job.payload else job._replace(due_ms=due, attempted=attempted))
        force = random.random() < 0.2
        self.same(
            f"publish {[(shown(job), job.due_ms and job.due_ms - now, job.attempted) for job in jobs]} {force=}",
            [bench.broker.publish(jobs, force=force) for bench in self.benches],
        )

    def claim(self) -> None:
        random = self.random
        free, prefetch, lanes = (
            random.randrange(4),
            random.choice((0, 0, 5)),
            random.choice((LANES, LANES[:1], LANES[1:])),
        )
        found = [bench.broker.claim("w1", lanes, free=free, prefetch=prefetch) for bench in self.benches]
        plain = [[(shown(one), one.ready_ms, *one[4:], one.lease.deliveries) for one in some] for some in found]
        self.same(f"claim {free=} {prefetch=}", plain)
        for held, new in zip(self.held, found, strict=True):
            held += new

    def _pick(self) -> list[Delivery]:
        at = self.random.randrange(len(self.held[0]))
        keep = self.random.random() < 0.1  # a lease that is used again is lost
        return [held[at] if keep else held.pop(at) for held in self.held]

    def settle(self) -> None:
        if self.held[0]:
            ones = self._pick()
            lost = [len(b.broker.settle(LANES, [one])) for b, one in zip(self.benches, ones, strict=True)]
            self.same(f"settle {shown(ones[0])}", lost)

    def release(self) -> None:
        if self.held[0]:
            random, ones = self.random, self._pick()
            options = {
                "delay_ms": random.choice((0, 0, None, random.randrange(1, 2000))),
                "blocked_by": random.choice((None, None, None, 1)),
                "charge_attempt": random.random() < 0.2,
                "charge_crash": random.random() < 0.1,
                "count": random.random() < 0.7,
            }
            counts = [b.broker.release(LANES, one, **options) for b, one in zip(self.benches, ones, strict=True)]
            self.same(f"release {shown(ones[0])} {options}", counts)

    def bury(self) -> None:
        if self.held[0]:
            ones = self._pick()
            self.same("bury", [b.broker.bury(LANES, one, "no") for b, one in zip(self.benches, ones, strict=True)])

    def discard(self) -> None:
        rows = [job for job in self.jobs.values() if job.payload is None]
        if rows:
            job = self.random.choice(rows)
            self.same("discard", [bench.broker.discard(job) for bench in self.benches])

    def reclaim(self) -> None:
        found = [
            bench.broker.reclaim("w1", LANES, lease_ms=LEASE_MS, renew_ms=RENEW_MS, cursor="0-0")
            for bench in self.benches
        ]
        for some, held in zip(found, self.held, strict=True):
            taken = sorted((one for one, _ in some.deliveries), key=lambda one: one.reference)
            held[:] = [one for one in held if one.reference not in {new.reference for new in taken}] + taken
        self.same("reclaim", [sorted(one.reference for one, _ in some.deliveries) for some in found])

    def look(self) -> None:
        rows = [job for job in self.jobs.values() if job.payload is None]
        self.same("locate", [bench.broker.locate(rows) for bench in self.benches])
        self.same("known", [bench.broker.known(DB, 0).rstrip(b"\0") for bench in self.benches])

    def advance(self) -> None:
        ms = self.random.choice((1, 5, 40, 300, 1500, 6000))
        self.log.append(f"advance {ms}")
        for bench in self.benches:
            bench.advance(ms)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_answers(valkey: RedisServer, seed: int) -> None:
    benches: list[MemoryBench] = [MemoryBench(), RedisBench(valkey)]
    benches[1].clock.ms = benches[0].clock.ms
    pair = Pair(benches, Random(seed))
    for bench in benches:
        bench.broker.begin_generation()
    weighted = {
        pair.publish: 5,
        pair.claim: 6,
        pair.settle: 4,
        pair.release: 4,
        pair.bury: 1,
        pair.discard: 1,
        pair.reclaim: 1,
        pair.look: 2,
        pair.advance: 5,
    }
    for step in pair.random.choices(list(weighted), list(weighted.values()), k=STEPS):
        step()
    for bench in benches:
        bench.close()
