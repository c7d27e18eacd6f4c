"""Add one known bug at a time to a copy of the source; the tests that are named for it must fail within a minute.

1. The unpatched copy must pass all these tests, so that the bug causes every later failure.
2. For each mutant, the patch is applied to a fresh copy and its tests run. A patch that does not apply fails the run.

The tests use the copy through PYTHONPATH, in pytest's process and in every worker that they start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sidestream.process import die_with_parent

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT = 60.0
"""Seconds within which the tests must find a mutant."""
ODOO_LIMIT = 180.0
"""The same for tests that set up a real Odoo first."""
TESTS_FAILED = 1
"""pytest's exit code for "some tests failed"; 2 and more mean that it could not even run them."""


class Mutant(NamedTuple):
    """One known bug, and the tests that must find it."""

    #: Name of the patch without its suffix.
    name: str
    #: The tests that must find it.
    tests: tuple[str, ...]
    #: Seconds within which they must find it.
    limit: float = LIMIT


_LEASES = "tests/acceptance/test_leases.py::"
_DEATHS = "tests/integration/reclaimer/test_worker_deaths.py::"
_SESSIONS = "tests/acceptance/test_lost_sessions.py::"
_RACES = "tests/integration/store/test_acquire_races.py::"
MUTANTS = (
    Mutant("acknowledge-before-commit", (f"{_LEASES}test_a_direct_job_of_a_killed_child_is_not_lost",)),
    Mutant("failure-without-compare-and-set", (f"{_LEASES}test_a_late_failure_does_not_make_a_done_job_pending",)),
    Mutant(
        "no-predecessor-check",
        (f"{_RACES}test_a_pending_predecessor_blocks_whatever_the_locks_say",),
    ),
    Mutant("reconcile-by-watermark", (f"{_LEASES}test_a_smaller_id_that_commits_later_is_published_too",)),
    Mutant("crash-count-in-redis", (f"{_LEASES}test_an_emptied_redis_forgets_no_crash",)),
    Mutant("lease-not-renewed", (f"{_LEASES}test_a_job_longer_than_its_lease_stays_with_its_worker",)),
    Mutant(
        "lone-start-not-charged",
        (f"{_DEATHS}test_the_lone_start_of_a_worker_that_is_neither_announced_nor_locked_is_charged",),
    ),
    Mutant("lost-session-not-charged", (f"{_SESSIONS}test_a_job_that_loses_its_session_each_time_fails_at_the_third",)),
    Mutant("slot-in-pieces", ("tests/unit/test_slots.py",)),
    Mutant("limit-not-held", ("tests/contract/test_brokers.py::TestConcurrency",)),
    Mutant("leases-of-the-other-broker-not-counted", ("tests/acceptance/test_limits_redis_away.py",)),
    Mutant(
        "follow-ups-in-one-packet", ("tests/acceptance/test_fan_out.py::test_a_fan_out_job_leaves_bystanders_alone",)
    ),
    Mutant("odoo-effect-before-done", ("tests/odoo/test_kills.py",), ODOO_LIMIT),
)


def main(arguments: Sequence[str]) -> int:
    """Run all mutants, or those that ``arguments`` name, and return the exit code."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(143))
    chosen = [mutant for mutant in MUTANTS if not arguments or mutant.name in arguments]
    if unknown := set(arguments) - {mutant.name for mutant in MUTANTS}:
        print(f"There is no mutant {sorted(unknown)}; known are: {', '.join(mutant.name for mutant in MUTANTS)}.")
        return 2
    tests = list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    with tempfile.TemporaryDirectory(prefix="sidestream-mutants-") as folder:
        Path(folder).chmod(0o755)  # workers run as another user
        print(f"unpatched: {len(tests)} tests", flush=True)
        code, seconds, output = _test(_copy(Path(folder) / "unpatched"), tests, sum(mutant.limit for mutant in chosen))
        if code != 0:
            print(f"The unpatched copy fails its own tests (exit code {code}): nothing below would mean anything.")
            print(output)
            return 1
        print(f"  passed in {seconds:.0f} s", flush=True)
        survivors = [mutant.name for mutant in chosen if not _caught(mutant, Path(folder))]
    print(
        f"mutants: {len(chosen) - len(survivors)} of {len(chosen)} caught"
        + (f"; NOT: {survivors}" if survivors else "")
    )
    return 1 if survivors else 0


def _caught(mutant: Mutant, folder: Path) -> bool:
    copy = _copy(folder / mutant.name)
    patched = apply(mutant.name, copy)
    if patched.returncode:
        print(f"{mutant.name}: the patch does not apply any more; make it anew.\n{patched.stdout}{patched.stderr}")
        return False
    code, seconds, output = _test(copy, mutant.tests, mutant.limit)
    caught = code == TESTS_FAILED and seconds < mutant.limit
    reason = {0: "SURVIVED, its tests passed", TESTS_FAILED: "caught"}.get(code, f"pytest ended with {code}")
    print(f"{mutant.name}: {reason} after {seconds:.0f} s", flush=True)
    if not caught:
        print(output)
    return caught


def apply(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Apply the patch ``name`` in ``folder`` with git, which knows no fuzz; ``--check`` only says whether it would."""
    command = ["git", "apply", *options, str(HERE / f"{name}.patch")]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    for name in ("addons", "scripts", ".sidestream-dev"):  # what a real Odoo is set up with
        (folder / name).symlink_to(ROOT / name)
    return folder


def _test(copy: Path, tests: Sequence[str], limit: float) -> tuple[int, float, str]:
    """Run ``tests`` on ``copy``; return pytest's exit code (-1: the time was over), the seconds, the output's end."""
    source = str(copy / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}
    which = [sys.executable, "-c", "import sidestream; print(sidestream.__file__)"]
    used = subprocess.run(which, cwd=ROOT, env=environment, text=True, capture_output=True, check=True).stdout.strip()
    if not used.startswith(source):
        raise SystemExit(f"The tests would run on {used} instead of the copy in {source}; look at PYTHONPATH.")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        f"pythonpath={source}",
        *tests,
    ]
    started = time.monotonic()
    parent = os.getpid()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: die_with_parent(parent, signal.SIGTERM),
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # pytest ends its servers and workers
            output, _ = process.communicate()
            return -1, time.monotonic() - started, output[-4000:]
        except BaseException:
            process.terminate()
            raise
    return process.returncode, time.monotonic() - started, output[-4000:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
