"""The addon's own tests, run by Odoo's runner in a real Odoo 19."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream.testing.odoo import ADDONS, OdooWorld
from sidestream.testing.server_process import ServerFailed

MODULES = "sidestream,test_sidestream"
RESULT = re.compile(r"(\d+) failed, (\d+) error\(s\) of (\d+) tests when loading database")
# An ERROR or a WARNING of any logger but the one that counts them.
COMPLAINT = re.compile(r"^\S+ \S+ \d+ (?:ERROR|WARNING|CRITICAL) .*", re.MULTILINE)


@pytest.fixture(scope="module")
def log() -> Iterator[str]:
    """What Odoo wrote while it ran the tests."""
    with OdooWorld(("sidestream", "test_sidestream"), base=("base", "web"), fsync=False) as world:
        path = world.folder / "tests.log"
        try:
            world.run_odoo(
                "-u", MODULES, "--test-enable", "--test-tags", "/sidestream,/test_sidestream", "--logfile", str(path)
            )
        except ServerFailed as error:
            if not path.exists():
                pytest.fail(str(error))
        yield path.read_text(errors="replace")


@pytest.mark.timeout(300)  # the first run on a machine makes the base database
def test_every_test_of_the_addon_passes(log: str) -> None:
    found = RESULT.search(log)
    assert found is not None, log[-4000:]
    failed, errors, total = map(int, found.groups())
    assert (failed, errors) == (0, 0), _failures(log)
    assert total >= _written_tests()


@pytest.mark.timeout(300)
def test_nothing_warns(log: str) -> None:
    assert COMPLAINT.findall(log) == []


def _written_tests() -> int:
    """Count the test methods of the addons, so that a file that nobody imports is noticed."""
    files = [path for module in MODULES.split(",") for path in Path(ADDONS, module, "tests").glob("test_*.py")]
    assert files
    return sum(len(re.findall(r"^    def test_", path.read_text(), re.MULTILINE)) for path in files)


def _failures(log: str) -> str:
    """Return the tracebacks of the tests that did not pass."""
    blocks = re.split(r"={60,}", log)
    return "\n".join(block[:3000] for block in blocks[1:])
