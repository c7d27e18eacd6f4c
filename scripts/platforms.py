"""``make test-matrix``: describe a platform, and write the page of platforms on which the tests passed.

``facts`` prints the versions on this machine as JSON; ``page SUITE...`` writes docs/reference/platforms.md from the
facts and test results in ``.sidestream-dev/matrix``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from sidestream.broker.redis.embedded import find_server

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # tests.support

from tests.support.servers import find_redis7, has_redis7, postgres_binary

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "platforms.md"
RESULTS = ROOT / ".sidestream-dev" / "matrix"
HEAD = """\
# Platforms

Made by `make test-matrix`, which runs the engine's unit, contract and integration tests on each of these systems.
Sidestream needs at least Python 3.11, PostgreSQL 14, and Redis 7.0 or any Valkey. Versions that are not in the table
are not tested. Odoo 19 is tested on Debian 12. Skipped tests are of capabilities that a broker does not have.

| System | Python | PostgreSQL | Redis | Valkey | Tests |
|---|---|---|---|---|---|
"""


class Results(NamedTuple):
    """What a run of pytest came to."""

    passed: int
    skipped: int
    failed: int


def facts() -> dict[str, str]:
    """Return the versions that the tests on this machine use."""
    redis = version(find_redis7()) if has_redis7() else "none"
    valkey = f"{version(find_server())} (embedded)"
    if named := os.environ.get("TEST_VALKEY"):
        valkey = f"{version(Path(named))}, {valkey}"
    return {
        "system": f"Debian {platform.freedesktop_os_release().get('VERSION_ID', 'unknown')}",
        "python": platform.python_version(),
        "postgresql": version(Path(postgres_binary("postgres"))),
        "redis": redis,
        "valkey": valkey,
    }


def version(program: Path) -> str:
    """Return the version that ``program --version`` prints."""
    beside = {"LD_LIBRARY_PATH": str(program.parent)} if any(program.parent.glob("*.so*")) else {}
    command = [str(program), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **beside})
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    if found is None:
        raise ValueError(f"{program} --version printed {done.stdout!r}; expected a version.")
    return found[0]


def results(path: Path) -> Results:
    """Read a JUnit file of pytest."""
    passed = skipped = failed = 0
    for suite in ET.parse(path).iter("testsuite"):
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        left_out = int(suite.get("skipped", 0))
        passed += int(suite.get("tests", 0)) - bad - left_out
        skipped += left_out
        failed += bad
    return Results(passed, skipped, failed)


def row(suite: str) -> str:
    """Return the page's line for a platform."""
    told = json.loads((RESULTS / f"{suite}.json").read_text())
    came = results(RESULTS / f"{suite}.xml")
    tests = ", ".join(f"{count} {what}" for count, what in zip(came, Results._fields, strict=True) if count)
    columns = [told[name] for name in ("system", "python", "postgresql", "redis", "valkey")]
    return f"| {' | '.join([*columns, tests])} |\n"


def main() -> int:
    """Carry out the command and return the exit code."""
    match sys.argv[1:]:
        case ["facts"]:
            print(json.dumps(facts()))
        case ["page", *suites] if suites:
            PAGE.write_text(HEAD + "".join(row(suite) for suite in suites))
        case other:
            print(f"platforms: {other} is no command; expected facts, or page and suites.", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
