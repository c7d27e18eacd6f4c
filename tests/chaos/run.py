"""``make chaos``: SIGKILL at every crash point, of every target, many times; exit code 1 when a promise was broken.

Points run in parallel, each in a process and a world of its own. The seed decides the order of the kills, the kinds of
traffic and which passage stops; timing is the machine's, so a seed narrows a failure down but does not replay it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

from sidestream.process import die_with_parent
from tests.chaos import away, sharing
from tests.chaos.campaign import Campaign, Result, sequence
from tests.chaos.points import POINTS, PRODUCER, TARGETS, plan
from tests.chaos.programs import ROOT, Launcher
from tests.chaos.world import World

COLUMNS = ("point", "kills", "leased", "open", "promised", "direct", "lost", "doubled", "ghosts", "reordered",
           "direct lost", "repeats", "failed", "seconds")  # fmt: skip
SLOW_FIRST = ("reclaim.", "relay.", "enqueue.", "reconcile.", "zygote.", "renew.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(143))
    if options.single:
        return _single(options)
    if options.away is not None:
        return away.main(options.away, options.seed)
    absence = _start(["tests.chaos.run", "--away", "--seed", options.seed]) if options.extras else None
    kept = _points_hold(options)
    if absence is not None:
        output, errors = absence.communicate()
        print(output, errors, sep="", flush=True)
        kept = absence.returncode == 0 and kept
        kept = _long_tests() == 0 and kept
        kept = sharing.main(["--seed", str(random.Random(options.seed).randrange(1 << 31))]) == 0 and kept
    print(f"chaos: {'every promise was kept' if kept else 'FAILED'}, seed {options.seed}")
    return 0 if kept else 1


def _points_hold(options: argparse.Namespace) -> bool:
    """Kill at every point; print what came of it and return whether all went well."""
    print(
        f"chaos: {len(options.points)} points, {options.repeats} kills of each of {options.targets} or as many as "
        f"{options.minutes:g} minutes allow, at least {options.repeats} in all; seed {options.seed}",
        flush=True,
    )
    started = time.monotonic()
    results = _all(options)
    _table(results)
    failed = [result for result in results if result["failures"]]
    for result in failed:
        print(f"\n{result['point']} FAILED (seed {result['seed']}):")
        for sentence in result["failures"]:
            print(f"  {sentence}")
    kills = sum(sum(result["kills"].values()) for result in results)
    seconds = time.monotonic() - started
    print(
        f"\nchaos: {kills} kills at {len(results)} points in {seconds:.0f} s, {len(failed)} points failed", flush=True
    )
    return not failed


def _start(module: list[str]) -> subprocess.Popen[str]:
    """Start one of our modules in a separate process, which receives SIGTERM when we end, so that it cleans up."""
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
    )


def _long_tests() -> int:
    """Some of ``make test`` at full length, on a machine that does nothing else by now; return pytest's exit code."""
    tests = (
        "tests/acceptance/test_kills.py::test_the_job_of_a_killed_child_starts_again_within_a_second",
        "tests/acceptance/test_redis_away.py::test_a_frozen_redis_takes_no_live_job_from_its_worker",
        "tests/acceptance/test_fan_out.py::test_a_great_many_follow_up_jobs_of_one_job_are_all_done",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--timeout=600", *tests]
    lengths = {"CHAOS_KILLS": "300", "CHAOS_FROZEN": "60", "CHAOS_FOLLOW_UPS": "100000"}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **lengths}, check=False).returncode


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument(
        "--seed", default=f"{random.SystemRandom().randrange(10**6)}", help="repeat the choices of a run"
    )
    parser.add_argument("--points", type=_points, default=list(POINTS), help="names or prefixes, separated by commas")
    parser.add_argument("--targets", type=_targets, default=[*TARGETS, PRODUCER], help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--repeats", type=int, default=50, help="kills of each target at each point")
    parser.add_argument(
        "--minutes",
        type=float,
        default=30.0,
        help="of the points in all: when its share is over, a point stops once it was killed at --repeats times",
    )
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--lanes", type=int, default=4, help="worlds at a time")
    parser.add_argument(
        "--extras",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also Redis away for 10 minutes beside it; then frozen for 60 s, 300 timed kills of children, and sharing",
    )
    parser.add_argument("--away", type=float, nargs="?", const=600.0, help="instead: Redis away for so many seconds")
    parser.add_argument("--single", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _points(text: str) -> list[str]:
    wanted = text.split(",")
    found = [point for point in POINTS if any(point.startswith(prefix) for prefix in wanted)]
    if not found:
        raise argparse.ArgumentTypeError(f"no crash point begins with {text!r}; known are: {', '.join(POINTS)}")
    return found


def _targets(text: str) -> list[str]:
    wanted = text.split(",")
    if unknown := set(wanted) - {*TARGETS, PRODUCER}:
        raise argparse.ArgumentTypeError(
            f"nobody is called {sorted(unknown)}; known are: {', '.join(TARGETS)}, producer"
        )
    return wanted


def _single(options: argparse.Namespace) -> int:
    """Run one point in this process and print its result as JSON on the last line."""
    point = options.single
    its = plan(point)
    seed = f"{options.seed}/{point}"
    targets = [target for target in options.targets if target in its.targets]
    settings = {"SIDESTREAM_CHILD_MAX_JOBS": "10"} if its.recycle else {}
    # Alone, a supervisor finds what it left behind itself; two share a host, or do not know each other's folders.
    supervisors, hosts = random.Random(seed).choice(((1, 1), (2, 1), (2, 2)))
    name = f"{options.seed}-{POINTS.index(point)}"
    with (
        Launcher() as launcher,
        World(supervisors=supervisors, hosts=hosts, seed=name, settings=settings, launcher=launcher) as world,
    ):
        kills = sequence(targets, options.repeats, seed)
        result = Campaign(world, point, kills, options.seed, least=options.repeats, share=options.share).run()
    print(json.dumps(_plain(result)))
    return 0


def _all(options: argparse.Namespace) -> list[dict[str, Any]]:
    order = sorted(options.points, key=lambda point: not point.startswith(SLOW_FIRST))
    running: list[subprocess.Popen[str]] = []
    results = []
    pool = ThreadPoolExecutor(options.lanes)
    try:
        pending = [pool.submit(_in_a_process, point, options, running) for point in order]
        for done in as_completed(pending):
            result = done.result()
            results.append(result)
            print(f"  {_line(result)}{'  FAILED' if result['failures'] else ''}", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        pool.shutdown()
    return sorted(results, key=lambda result: POINTS.index(result["point"]))


def _in_a_process(point: str, options: argparse.Namespace, running: list[subprocess.Popen[str]]) -> dict[str, Any]:
    module = ["tests.chaos.run", "--single", point, "--seed", options.seed]
    share = options.minutes * 60 * min(options.lanes, len(options.points)) / len(options.points)
    module += ["--share", f"{share:.0f}", "--targets", ",".join(options.targets), "--repeats", str(options.repeats)]
    process = _start(module)
    running.append(process)
    output, errors = process.communicate()
    running.remove(process)
    try:
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        failure = f"The campaign itself failed with exit code {process.returncode}: {errors[-4000:]}"
        return {**_plain(Result(point, options.seed)), "failures": [failure]}
    return found


def _plain(result: Result) -> dict[str, Any]:
    return asdict(result)


def _cells(result: dict[str, Any]) -> list[str]:
    verdict = result["verdict"]
    return [
        result["point"], str(sum(result["kills"].values())), str(result["leased"]), str(result["open"]),
        str(verdict["promised"]), str(verdict["direct"]),
        *(str(len(verdict[name])) for name in ("lost", "doubled", "ghosts", "reordered", "direct_lost")),
        str(verdict["direct_repeats"]), str(verdict["failed"]), f"{result['seconds']:.0f}",
    ]  # fmt: skip


def _line(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, _cells(result), strict=True))


def _table(results: list[dict[str, Any]]) -> None:
    rows = [list(COLUMNS), *(_cells(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    print()
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print(" ".join([row[0].ljust(widths[0]), *numbers]))


if __name__ == "__main__":
    sys.exit(main())
