"""Kill the processes of a plan, resume the others, and restart the killed ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import redis

from tests.chaos import processes
from tests.chaos.harness import Hit
from tests.chaos.points import PRODUCER
from tests.chaos.programs import Program
from tests.chaos.world import World

ORPHAN_PATIENCE = 15.0
"""Seconds after which nothing that a dead worker started may be left."""
_IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^sidestream/.*/[0-9]+$' AND xact_start IS NOT NULL
"""


class Exposure(NamedTuple):
    """What was in flight when the kill came."""

    #: Deliveries under a lease.
    leased: int
    #: Children's sessions inside a transaction.
    open: int


@dataclass
class Striker:
    """Carries kills out in one world."""

    world: World
    chance: random.Random
    #: What the killed supervisors had started.
    families: list[tuple[int, int]] = field(default_factory=list)

    def strike(self, hit: Hit, target: str) -> Exposure | None:
        """Kill ``target`` while ``hit`` is stopped, then restart it; None when there is no such process."""
        worker = self._worker_of(hit)
        exposure = self._exposure()
        struck = self._kill(hit, worker, target)
        processes.resume(hit.pid)
        self.restart()
        return exposure if struck else None

    def restart(self) -> None:
        """Start what does not run, as an operating system's service manager would."""
        world = self.world
        if not world.redis.alive:
            world.redis.start()
            world.wait_until(world.redis_answers, "Redis has loaded what it held")
        if not world.postgres.alive:
            world.postgres.start()
            world.forget_connection()
        world.start_workers()
        if world.producer is not None:
            world.producer.start()

    def orphans(self) -> list[int]:
        """Return the processes that dead workers left, after giving them time to end."""
        left = processes.wait_gone(self.families, ORPHAN_PATIENCE)
        self.families = []
        return left

    def _kill(self, hit: Hit, worker: Program, target: str) -> bool:
        world = self.world
        match target:
            case "postgres":
                world.postgres.kill()
            case "redis":
                world.redis.kill()
            case "all":
                family = [pid for each in world.workers for pid in each.tree()]
                processes.stop(*family)  # so that none of them sees another one die
                processes.kill(*family)
                for each in world.workers:
                    each.reap()
            case "supervisor":
                self.families += processes.identities(worker.tree())
                processes.kill(worker.pid)
                worker.reap()
            case "zygote":
                if not (zygote := world.zygote(worker)):
                    return False
                processes.kill(zygote)
            case "child":
                children = world.children(worker)
                if not children:
                    return False
                processes.kill(hit.pid if hit.pid in children else self.chance.choice(children))
            case _ if target == PRODUCER and world.producer is not None:
                processes.kill(world.producer.pid)
                world.producer.reap()
            case _:
                raise ValueError(f"There is nobody called {target!r} to kill here.")
        return True

    def _worker_of(self, hit: Hit) -> Program:
        for worker in self.world.workers:
            if hit.pid in worker.tree():
                return worker
        running = [worker for worker in self.world.workers if worker.pid]
        return self.chance.choice(running or self.world.workers)

    def _exposure(self) -> Exposure:
        [(transactions,)] = self.world.query(_IN_TRANSACTION)
        try:
            leased = int(self.world.valkey.hlen("sidestream:{s0}:leases"))
        except redis.RedisError:
            leased = 0  # it was restarted this moment and still loads
        return Exposure(leased, transactions)
