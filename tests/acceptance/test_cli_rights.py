"""What ``db init`` says, and how commands fail for a role without rights on the tables."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from sidestream.store import schema
from tests.acceptance.conftest import Finished, Run, answer, refused
from tests.acceptance.test_cli import SIDESTREAM, execute


def test_db_init_says_whether_it_created_the_tables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(run("db", "init", "--json"))["created"] is True
    assert run("db", "init").stdout.startswith(f"The tables exist already, with version {schema.SCHEMA_VERSION}; ")
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    assert " (upgrade them: sidestream db upgrade); " in run("db", "init").stdout
    assert answer(run("db", "init", "--json"))["version"] == schema.SCHEMA_VERSION - 1


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """A role that owns nothing and may do nothing."""
    name = f"stranger_{os.getpid()}"
    execute(database, f"CREATE ROLE {name} LOGIN")
    yield name
    execute(database, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_without_rights_is_code_3_and_named_with_the_remedy(
    ready: Run, database: str, role: str, tmp_path: Path
) -> None:
    url = make_conninfo(database, user=role)
    remedy = "connect as the owner of the tables, or grant it the rights (docs/howto/worker.md, PostgreSQL)."
    said = f"The role {role!r} may not do this ("
    for words in (
        ["db", "init"],
        ["db", "check"],
        ["enqueue", "a"],
        ["jobs"],
        ["job", "retry", "1"],
        ["queue", "list"],
    ):
        done = ready("--database-url", url, *words)
        refused(done, 3, said)
        assert "permission denied for table sidestream_" in done.stderr
        assert remedy in done.stderr
    (tmp_path / "app.py").write_text("from sidestream import Actions\nactions = Actions()\n")
    worker = [SIDESTREAM, "--database-url", url, "--app", "app:actions", "worker", "run"]
    done = subprocess.run(worker, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(Finished(done.returncode, done.stdout, done.stderr), 3, said)


def test_a_role_with_the_rights_that_the_guide_names_can_enqueue(ready: Run, database: str, role: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "worker.md").read_text()
    [grants] = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    url = make_conninfo(database, user=role)
    execute(database, grants.replace("shop", role))
    for options in ([], ["--key", "k"], ["--unique", "u"], ["--unique", "u", "--on-conflict", "replace"]):
        done = ready("--database-url", url, "enqueue", "a", *options)
        assert done.returncode == 0, done.stderr
