"""Run the addon's own tests with Odoo's test runner, and test it with Odoo's other commands."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream.store import schema
from tests.support.odoo import ADDONS, DATABASE, OdooWorld, odoo_command
from tests.support.server_process import ServerFailed, free_port

MODULES = "sidestream,test_sidestream"
RESULT = re.compile(r"(\d+) failed, (\d+) error\(s\) of (\d+) tests when loading database")
# An ERROR or a WARNING of any logger.
COMPLAINT = re.compile(r"^\S+ \S+ \d+ (?:ERROR|WARNING|CRITICAL) .*", re.MULTILINE)


@pytest.fixture(scope="module")
def world() -> Iterator[OdooWorld]:
    """One Odoo for the whole file."""
    with OdooWorld(("sidestream", "test_sidestream"), base=("base", "web"), fsync=False) as made:
        yield made


@pytest.fixture(scope="module")
def log(world: OdooWorld) -> str:
    """Odoo's log of the tests."""
    path = world.folder / "tests.log"
    try:
        world.run_odoo(
            *("-u", MODULES, "--test-enable", "--test-tags", "/sidestream,/test_sidestream", "--logfile", str(path)),
            f"--http-port={free_port()}",  # with tests, Odoo listens despite "--no-http"
        )
    except ServerFailed as error:
        said = path.read_text(errors="replace") if path.exists() else ""
        if not RESULT.search(said):
            pytest.fail(f"{error}\n{said[-4000:]}")
    return path.read_text(errors="replace")


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


@pytest.mark.timeout(300)
def test_a_neutralized_copy_runs_nothing_and_has_its_own_identity(world: OdooWorld) -> None:
    with world.connect() as look:
        look.execute(
            "INSERT INTO sidestream_job (action, queue, payload) VALUES ('res.partner.x', 'default', '{}')",
        )
        before = look.execute("SELECT database_uuid FROM sidestream_meta").fetchone()
        _odoo(world, "neutralize")
        assert look.execute("SELECT DISTINCT state FROM sidestream_job").fetchall() == [("cancelled",)]
        assert look.execute("SELECT database_uuid FROM sidestream_meta").fetchone() != before


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("log")  # which ran "-u" with tables that are current
def test_upgrading_the_addon_upgrades_the_tables(world: OdooWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next release of the engine, whose tables have one more column, is made of this one as Python starts."""
    newer = schema.SCHEMA_VERSION + 1
    change = {newer: "ALTER TABLE sidestream_job ADD COLUMN later text"}
    folder = world.folder / "newer"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"from sidestream.store import schema\nschema.SCHEMA_VERSION = {newer}\nschema.UPGRADES = {change!r}\n"
    )
    with world.connect() as look:
        version = "SELECT version FROM sidestream_meta"
        assert look.execute(version).fetchone() == (schema.SCHEMA_VERSION,)
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        world.install("sidestream", upgrade=True)
        assert look.execute(version).fetchone() == (newer,)
        look.execute("SELECT later FROM sidestream_job")


@pytest.mark.timeout(300)
def test_uninstalling_leaves_nothing_behind(world: OdooWorld) -> None:
    _odoo(world, "module", "uninstall", "sidestream")
    with world.connect() as look:
        assert look.execute("SELECT relname FROM pg_class WHERE relname LIKE 'sidestream%'").fetchall() == []
        left = "SELECT name FROM ir_model_fields WHERE model LIKE 'sidestream%' OR name LIKE 'sidestream%'"
        assert look.execute(left).fetchall() == []
    world.install("sidestream")  # it can be installed again
    with world.connect() as look:
        assert look.execute("SELECT count(*) FROM sidestream_job").fetchone() == (0,)


def _odoo(world: OdooWorld, *words: str) -> None:
    """Run another of Odoo's commands."""
    command = [*odoo_command(), *words[:2], "-c", str(world.config), "-d", DATABASE, *words[2:]]
    done = subprocess.run(
        command, env=world.environment(), cwd=world.folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _written_tests() -> int:
    """Count the test methods of the addons, to notice a file that is not imported."""
    files = [path for module in MODULES.split(",") for path in Path(ADDONS, module, "tests").glob("test_*.py")]
    assert files
    return sum(len(re.findall(r"^    def test_", path.read_text(), re.MULTILINE)) for path in files)


def _failures(log: str) -> str:
    """Return the tracebacks of the failed tests."""
    blocks = re.split(r"={60,}", log)
    return "\n".join(block[:3000] for block in blocks[1:])
