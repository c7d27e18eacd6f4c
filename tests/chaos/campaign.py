"""Test one crash point in one world: stop, kill, restart, repeat; then everything has to come to rest."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos import checker
from tests.chaos.points import Plan, plan
from tests.chaos.strike import Striker
from tests.chaos.world import LEASE, PATIENCE, World

LOOK_EVERY = 10
"""Kills between two looks at the ledger."""


@dataclass
class Result:
    """What one campaign did and found."""

    point: str
    seed: str
    kills: dict[str, int] = field(default_factory=dict)
    #: Deliveries under a lease, and transactions of jobs open, summed over all kills.
    leased: int = 0
    open: int = 0
    verdict: checker.Verdict = field(default_factory=checker.Verdict)
    #: Everything that must not be, one sentence each.
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Campaign:
    """Kills at one point in ``world``, whose processes must not run yet."""

    def __init__(
        self, world: World, point: str, kills: Sequence[str], seed: str, *, least: int = 0, share: float | None = None
    ) -> None:
        """Kill ``kills`` one after another; after ``share`` seconds only until there were ``least`` of them."""
        self._least = least
        self._share = share
        self._world = world
        self._plan: Plan = plan(point)
        self._kills = kills
        self._chance = random.Random(f"{seed}/{point}")
        self._striker = Striker(world, self._chance)
        self.result = Result(point, seed)

    def run(self) -> Result:
        """Carry it out; violations are in the result, only a broken harness raises."""
        started = time.monotonic()
        world, result = self._world, self.result
        world.add_producer(self._plan.traffic())
        world.arm(result.point, self._chance.randint(1, self._plan.every))
        self._striker.restart()
        stop = threading.Event()
        absent = threading.Thread(target=self._be_absent, args=(stop,), daemon=True) if self._plan.absent else None
        try:
            if absent is not None:
                absent.start()
            for number, target in enumerate(self._kills, 1):
                if not self._one(target):
                    break
                if number % LOOK_EVERY == 0 and not self._look():
                    break
                if self._share is not None and number >= self._least and time.monotonic() - started > self._share:
                    break
        finally:
            stop.set()
            if absent is not None:
                absent.join()
        self._come_to_rest()
        result.seconds = time.monotonic() - started
        return result

    def _one(self, target: str) -> bool:
        """Wait for a hit and strike; return False when the campaign cannot go on."""
        world, result = self._world, self.result
        exposure = None
        while exposure is None:
            hit = world.harness.next_hit(PATIENCE)
            if hit is None:
                result.failures.append(f"Nobody came to {result.point} within {PATIENCE:g} s; {world.logs()}")
                return False
            exposure = self._striker.strike(hit, target)
        result.kills[target] = result.kills.get(target, 0) + 1
        result.leased += exposure.leased
        result.open += exposure.open
        return self._progress(target)

    def _progress(self, target: str) -> bool:
        """Wait until something new is done, so that every kill meets a working world."""
        world = self._world
        before = world.query("SELECT clock_timestamp()")[0][0]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if world.query("SELECT EXISTS (SELECT FROM ledger WHERE at > %s)", before)[0][0]:
                return True
            self._striker.restart()  # a poor start, for example while PostgreSQL recovered, is a start as well
            time.sleep(0.02)
        self.result.failures.append(f"Nothing was done for {PATIENCE:g} s after {target} was killed; {world.logs()}")
        return False

    def _look(self) -> bool:
        verdict = checker.check(self._world.connection(), self._world.folder, self._world.dead_direct())
        wrong = verdict.doubled or verdict.ghosts or verdict.reordered
        if wrong:
            self.result.failures.append(f"Stopped early, after {sum(self.result.kills.values())} kills: {verdict}")
        if orphans := self._striker.orphans():
            self.result.failures.append(f"Left behind by a killed supervisor: processes {orphans}.")
        return not wrong

    def _come_to_rest(self) -> None:
        """No more traffic and no more kills: every promise is kept within the time, or it is broken."""
        world, result = self._world, self.result
        if world.producer is not None:
            code = world.producer.terminate(PATIENCE)
            # Ended by the signal itself: the last kill was its own, and it was only just being started again.
            if code not in (0, -signal.SIGTERM):
                words = world.last_words(world.producer)
                result.failures.append(f"The producer did not end well (exit code {code}): {words}")
        self._striker.orphans()
        verdict = checker.wait_until_settled(world.connection(), world.folder, PATIENCE, world.dead_direct)
        result.verdict = verdict
        for name, tokens in verdict.violations.items():
            result.failures.append(f"{len(tokens)} {name}: {', '.join(tokens[:5])}")
        if verdict.lost:
            result.failures += world.whereabouts(verdict.lost)
        if verdict.violations:
            result.failures.append(world.logs())

    def _be_absent(self, stop: threading.Event) -> None:
        """Claim as a worker that is never heard of again, so that others have to take over."""
        from tests.chaos.absent import Absentee

        absentee = Absentee(self._world)
        while not stop.wait(LEASE / 8):
            absentee.claim()
        absentee.close()


def sequence(targets: Sequence[str], repeats: int, seed: str) -> list[str]:
    """Return each target ``repeats`` times in an order drawn from ``seed``: each once before any comes again."""
    chance = random.Random(seed)
    return [target for _ in range(repeats) for target in chance.sample(targets, len(targets))]
