"""Compare Sidestream with other job queues on this machine, each at its best settings.

The same empty job through each: first so many enqueued and then drained by 2 worker processes (jobs/s between the first
and the last job's own stamp, so that starting up is outside), then, with the same worker, one job after another, each
20 ms after the one before ran (from the call that enqueues to the job's first line). All over the unix socket of the
same server. Each job has to run exactly once. What becomes of the jobs of a killed worker stands in each row: see
``settings/``. The bare loops of redis-py are the limit of this machine: they promise nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # beside the other scripts

import bare
from feeding import payload, publish_direct
from harness import Figure, Row, figure, finish, head, in_turn, note, options, percentile
from stamps import Stamps
from throughput import bare_drain, drained
from world import HERE, World, server_versions

from peers.environment import CannotInstall, environment
from peers.settings import PACKAGES, SETTINGS, Setting

PAUSE = 0.02
WARM_UP = 10
PACED = 60
"""Jobs of the idle part; the first ten only warm up."""
DEADLINE = 60.0
"""Seconds without an end after which a peer counts as stalled."""
STOPS = 10.0
"""Seconds that a peer's worker is given to stop."""
PEERS = HERE / "peers"
HOP = "bare:hop"


class Outcome(NamedTuple):
    """One round of one side."""

    rate: float
    #: Milliseconds.
    p50: float
    p99: float


class LeftOut(Exception):
    """A side has no figures; the message says why."""


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=20_000, quick_jobs=4_000, names=tuple(PACKAGES))
    chosen = [one for one in SETTINGS if not asked.only or one.peer in asked.only]
    reasons: dict[str, str] = {}
    programs: dict[str, Path] = {}
    for peer in dict.fromkeys(one.peer for one in chosen):
        try:
            programs[peer] = environment(peer, PACKAGES[peer])
        except CannotInstall as error:
            reasons |= {one.name: str(error) for one in chosen if one.peer == peer}
    with World() as world:
        head(
            "peers",
            {
                **server_versions(world),
                "jobs": f"{asked.jobs:,} a drain (slow peers: a part of it), then {PACED - WARM_UP} one by one",
                "peers": ", ".join(PACKAGES[peer][0] for peer in programs),
            },
        )
        ledger = world.ledger(asked.jobs + PACED)
        sides: dict[str, Callable[[], Outcome | None]] = {
            "sidestream": lambda: ours(world, ledger, asked.jobs),
            "bare": lambda: limit(world, ledger, asked.jobs),
        }
        for one in chosen:
            if one.name not in reasons:
                side = Side(world, ledger, one, programs[one.peer], max(50, int(asked.jobs * one.share)))
                sides[one.name] = lambda side=side: side.round(reasons)  # type: ignore[misc]
        found = in_turn(asked.rounds, sides)
    report(found, chosen, reasons)


def report(found: dict[str, list[Outcome | None]], chosen: Sequence[Setting], reasons: dict[str, str]) -> None:
    """Print the rows: each side beside ours, those without figures with the reason."""
    sides = {"bare": "bare redis-py loops, 2 processes (latency: 1 hop): the limit, survives no crash"} | {
        one.name: f"{one.name}: {one.words}; running jobs of a killed worker: {one.crash}" for one in chosen
    }
    rows = []
    for what, field, unit in (
        ("no-op jobs, 2 processes", "rate", "jobs/s"),
        ("idle, enqueue -> start, p50", "p50", "ms"),
        ("idle, enqueue -> start, p99", "p99", "ms"),
    ):
        for name, words in sides.items():
            if name not in reasons:
                rows.append(Row(what, _each(found["sidestream"], field), unit, words, _each(found[name], field)))
    ours_alone = _each(found["sidestream"], "rate")
    rows += [
        Row("no-op jobs, 2 processes", ours_alone, "jobs/s", f"{name}: left out, {reason}")
        for name, reason in reasons.items()
    ]
    finish("peers", rows)


def _each(outcomes: Sequence[Outcome | None], field: str) -> Figure:
    return figure([getattr(one, field) for one in outcomes if one is not None])


def ours(world: World, ledger: Stamps, size: int) -> Outcome:
    """One round of Sidestream: direct jobs, signed; a killed worker's jobs run again after the lease (15 s)."""
    _empty(world, ledger)
    publish_direct(world, size, None)
    with world.worker(ledger) as worker, world.jobs() as jobs:
        rate = drained(ledger, size, lambda: world.read(worker), worker.check).rate
        called = _paced(ledger, size, lambda number: jobs.enqueue_direct("bench.noop", (payload(number),)))
        return _outcome(ledger, rate, size, called)


def limit(world: World, ledger: Stamps, size: int) -> Outcome:
    """One round of the bare loops."""
    _empty(world, ledger)
    rate = bare_drain(world, ledger, size, 2).rate
    world.client.xgroup_create(HOP, bare.GROUP, id="0", mkstream=True)
    with bare.processes(bare.hop, [(world.redis.url, HOP, ledger.path)]):
        called = _paced(ledger, size, lambda number: world.client.xadd(HOP, {"n": number}))
        return _outcome(ledger, rate, size, called)


class Side(NamedTuple):
    """One way to run a peer."""

    world: World
    ledger: Stamps
    setting: Setting
    programs: Path
    size: int

    def round(self, reasons: dict[str, str]) -> Outcome | None:
        """Measure once; None, and the reason noted, when it cannot be done: then it is not tried again."""
        name = self.setting.name
        if name in reasons:
            return None
        try:
            return self._measure()
        except (LeftOut, TimeoutError, AssertionError) as error:
            reasons[name] = str(error)
            note(f"{name} is left out: {error}")
            return None

    def _measure(self) -> Outcome:
        _empty(self.world, self.ledger)
        self._produce("bulk", 0, self.size)
        with self._serving() as check:
            rate = drained(self.ledger, self.size, self.world.read, check, deadline=DEADLINE).rate
            called = json.loads(self._produce("pace", self.size, PACED))
            return _outcome(self.ledger, rate, self.size, called)

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.setting.variables,
            "PATH": os.pathsep.join((str(self.programs), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join((str(HERE), str(PEERS))),
            "BENCH_REDIS_URL": self.world.redis.url,
            "BENCH_STAMPS": str(self.ledger.path),
        }

    def _produce(self, how: str, first: int, count: int) -> str:
        command = [str(self.programs / "python"), f"{self.setting.peer}_app.py", how, str(first), str(count)]
        try:
            done = subprocess.run(
                command, env=self._environment, cwd=PEERS, capture_output=True, text=True, timeout=DEADLINE, check=False
            )
        except subprocess.TimeoutExpired:
            raise LeftOut(f"its producer took more than {DEADLINE:.0f} s for {count} jobs") from None
        if done.returncode:
            raise LeftOut(f"its producer failed: {_last(done.stderr)}")
        return done.stdout

    @contextmanager
    def _serving(self) -> Iterator[Callable[[], None]]:
        """Run the worker's processes and give a function that raises when one ended by itself."""
        log = self.world.folder / "peer.log"
        running: list[subprocess.Popen[bytes]] = []
        program, *rest = self.setting.command
        try:
            with log.open("w") as out:
                for number in range(self.setting.copies):
                    words = [part.replace("{number}", str(number)) for part in rest]
                    running.append(
                        subprocess.Popen(
                            [str(self.programs / program), *words],
                            env=self._environment,
                            cwd=PEERS,
                            stdout=out,
                            stderr=out,
                            start_new_session=True,
                        )
                    )

            def check() -> None:
                if any(process.poll() is not None for process in running):
                    raise LeftOut(f"its worker ended by itself: {_last(log.read_text())}")

            yield check
        finally:
            _stop(running)


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let masters end their children; what is left of a group after ten seconds is killed."""
    for process in running:
        process.terminate()
    end = time.monotonic() + STOPS
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _empty(world: World, ledger: Stamps) -> None:
    world.client.flushall()  # the script's own server
    ledger.clear()


def _paced(ledger: Stamps, first: int, enqueue: Callable[[int], object]) -> list[float]:
    called = []
    for number in range(first, first + PACED):
        time.sleep(PAUSE)  # the pace of the measurement, not a wait for anything
        called.append(time.time())
        enqueue(number)
        ledger.wait(number + 1, DEADLINE)  # the next one meets an idle worker
    return called


def _outcome(ledger: Stamps, rate: float, size: int, called: Sequence[float]) -> Outcome:
    """Wait for the paced jobs, see that everything ran exactly once, and return the round."""
    ledger.wait(size + PACED, DEADLINE)
    ledger.check(size + PACED)
    started = ledger.times(size + PACED)[size:]
    took = [(at - call) * 1000 for at, call in zip(started, called, strict=True)][WARM_UP:]
    return Outcome(rate, percentile(took, 0.5), percentile(took, 0.99))


def _last(text: str) -> str:
    lines = text.strip().splitlines() or ["it said nothing"]
    return lines[-1][:150]


if __name__ == "__main__":
    main()
