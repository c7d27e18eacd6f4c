"""The how-to pages work: their Python blocks and commands run in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Run

PAGES = Path(__file__).parents[2] / "docs" / "howto"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODULE = "# myapp/jobs.py\n"
"""The first line of a block that is a module of its own, which later blocks import."""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page takes for granted: a package of the reader's, and the courier's client."""
    monkeypatch.setitem(sys.modules, "myapp", ModuleType("myapp"))
    monkeypatch.setitem(sys.modules, "courier", SimpleNamespace(ship=lambda order, idempotency_key: "T1"))
    yield
    sys.modules.pop("myapp.jobs", None)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("page", ["actions", "enqueue", "failures", "limits", "pause", "priorities", "stop", "unique"])
def test_the_examples_of_a_page_run(ready: Run, page: str) -> None:
    blocks = BLOCK.findall((PAGES / f"{page}.md").read_text())
    assert blocks
    with psycopg.connect(os.environ["SIDESTREAM_DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE invoice (id int PRIMARY KEY, printed boolean)")
    names: dict[str, Any] = {"__name__": page}
    for kind, text in blocks:
        if text.startswith(MODULE):
            module = ModuleType("myapp.jobs")
            sys.modules[module.__name__] = module
            exec(compile(text, f"{page}.md", "exec"), vars(module))  # our own page
            names["actions"] = module.actions
            continue
        if kind == "python":
            exec(compile(text, f"{page}.md", "exec"), names)
            continue
        for line in text.splitlines():
            command, *words = shlex.split(line.removeprefix("$ ").replace("$JOB", str(names.get("job"))))
            assert command == "sidestream"
            done = ready(*words)
            assert done.returncode == 0, (line, done.stderr)
    if "jobs" in names:
        names["jobs"].close()
