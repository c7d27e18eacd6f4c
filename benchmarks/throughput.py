"""Measure how many empty jobs a second two children run, without losing any to a kill.

The jobs are enqueued first, then the worker is started; the rate is taken between the first and the last job's own
stamp, so that starting up is outside for every side. Every drain must deliver each job exactly once.
Theirs: Dramatiq with the best settings found that survive a crash, measured in the same run over the same server, and
bare loops of redis-py (64 entries a read, one acknowledgement for all of them), which are the limit of this machine: no
lease is renewed, nothing is counted, and the leases of a dead loop are not reclaimed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import bare
from feeding import payload, publish_direct
from harness import Bar, Row, figure, finish, head, in_turn, note, options
from peers.environment import CannotInstall, environment
from peers.settings import PACKAGES
from stamps import Stamps
from world import HERE, Reading, World, server_versions

ELSEWHERE = 12_279.0
"""Dramatiq's jobs a second on a quiet machine of this size, measured elsewhere; used when it cannot be installed."""
STREAM = "bare:drain"
KEYS = 100
DEADLINE = 120.0


class Drain(NamedTuple):
    """One drain."""

    rate: float
    #: Used between the first job and the last one.
    used: Reading
    #: Jobs that ran in that time.
    jobs: int


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=20_000, quick_jobs=5_000)
    programs = None
    try:
        programs = environment("dramatiq", PACKAGES["dramatiq"])
    except CannotInstall as error:
        note(f"Dramatiq's side is left out: {error}")
    with World() as world:
        head(
            "throughput",
            {
                **server_versions(world),
                "jobs": f"{asked.jobs:,} a drain, {KEYS} keys where keyed; payload of four fields",
                "sidestream": "1 supervisor, 2 children, lease 15 s, direct jobs signed (HMAC-SHA256)",
                "dramatiq": "2.2.1, -p 2 -t 2, dramatiq_queue_prefetch=64 (taken over after 60 s)",
            },
        )
        ledger = world.ledger(asked.jobs)
        sides: dict[str, Callable[[], Drain]] = {
            "sidestream": lambda: ours(world, ledger, asked.jobs, None),
            "sidestream, keyed": lambda: ours(world, ledger, asked.jobs, KEYS),
            "bare, 2 processes": lambda: bare_drain(world, ledger, asked.jobs, 2),
            "bare, 1 process": lambda: bare_drain(world, ledger, asked.jobs, 1),
        }
        if programs is not None:
            sides["dramatiq"] = lambda: dramatiq(world, ledger, asked.jobs, programs)
        found = in_turn(asked.rounds, sides)
    report(found)


def report(found: dict[str, list[Drain]]) -> None:
    """Print the rows."""
    peer = found.get("dramatiq")
    theirs = figure([drain.rate for drain in peer]) if peer else figure(ELSEWHERE)
    where = "Dramatiq -p 2 -t 2, prefetch 64, at least once" + ("" if peer else " (measured elsewhere)")
    rates = {name: figure([drain.rate for drain in drains]) for name, drains in found.items()}
    rows = [
        Row("no-op jobs, crash-safe, 2 children", rates["sidestream"], "jobs/s", where, theirs, Bar("ratio", ">=", 3))
    ]
    rows += [
        Row(
            "no-op jobs, crash-safe, 2 children",
            rates["sidestream"],
            "jobs/s",
            f"{name}: the limit, not a peer",
            rates[name],
        )
        for name in ("bare, 2 processes", "bare, 1 process")
    ]
    rows.append(Row(f"keyed no-op jobs ({KEYS} keys)", rates["sidestream, keyed"], "jobs/s", where, theirs))
    for side, bar in (("sidestream", Bar("value", "<", 0.2)), ("sidestream, keyed", None)):
        drains = found[side]
        trips = figure([drain.used.trips / drain.jobs for drain in drains])
        rows.append(Row(f"{side}: round trips to Redis", trips, "a job", "", None, bar))
        for what in ("redis", "supervisor", "children"):
            cpu = figure([getattr(drain.used, what) / drain.jobs * 1e6 for drain in drains])
            rows.append(Row(f"{side}: CPU of {what}", cpu, "us a job"))
    for side in ("dramatiq", "bare, 2 processes"):
        if side in found:
            cpu = figure([drain.used.redis / drain.jobs * 1e6 for drain in found[side]])
            rows.append(Row(f"{side}: CPU of redis", cpu, "us a job"))
    note("Limit: all processes share the cores; jobs/s cannot pass cores / (CPU of redis + supervisor + children).")
    finish("throughput", rows)


def ours(world: World, ledger: Stamps, size: int, keys: int | None) -> Drain:
    """Drain ``size`` direct jobs."""
    ledger.clear()
    publish_direct(world, size, keys)
    with world.worker(ledger, children=2) as worker:
        return drained(ledger, size, lambda: world.read(worker), worker.check)


def bare_drain(world: World, ledger: Stamps, size: int, count: int) -> Drain:
    """Drain ``size`` entries with ``count`` bare loops."""
    ledger.clear()
    world.client.xgroup_create(STREAM, bare.GROUP, id="0", mkstream=True)
    for start in range(0, size, 1000):
        pipe = world.client.pipeline(transaction=False)
        for number in range(start, min(start + 1000, size)):
            pipe.xadd(STREAM, {"p": json.dumps(payload(number))})
        pipe.execute()
    each = [(world.redis.url, STREAM, f"c{number}", ledger.path) for number in range(count)]
    with bare.processes(bare.drain, each):
        found = drained(ledger, size, world.read)
    world.client.delete(STREAM)
    return found


def dramatiq(world: World, ledger: Stamps, size: int, programs: Path) -> Drain:
    """Drain ``size`` messages with Dramatiq."""
    ledger.clear()
    app = HERE / "peers" / "dramatiq_app.py"
    given = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(HERE), str(app.parent))),
        "BENCH_REDIS_URL": world.redis.url,
        "BENCH_STAMPS": str(ledger.path),
        "dramatiq_queue_prefetch": "64",
    }
    subprocess.run([programs / "python", app, "bulk", "0", str(size)], env=given, check=True, timeout=DEADLINE)
    with master([str(programs / "dramatiq"), "-p", "2", "-t", "2", "--skip-logging", app.stem], given):
        return drained(ledger, size, world.read)


@contextmanager
def master(command: list[str], given: dict[str, str]) -> Iterator[None]:
    """Run a program that stops its own children on SIGTERM."""
    process = subprocess.Popen(command, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)


def drained(
    ledger: Stamps,
    size: int,
    read: Callable[[], Reading],
    check: Callable[[], None] | None = None,
    *,
    deadline: float = DEADLINE,
) -> Drain:
    """Wait for the first job, then for the last; check that each ran once."""
    early = ledger.wait(size, deadline, some=1, check=check)
    before = read()
    ledger.wait(size, deadline, check=check)
    used = read() - before
    ledger.check(size)
    return Drain(ledger.rate(size), used, size - early)


if __name__ == "__main__":
    main()
