"""The how-to pages say what works: their Python blocks run, and so do their commands, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Run

PAGES = Path(__file__).parents[2] / "docs" / "howto"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["failures", "limits", "pause", "priorities", "stop", "unique"])
def test_the_examples_of_a_page_run(ready: Run, page: str) -> None:
    blocks = BLOCK.findall((PAGES / f"{page}.md").read_text())
    assert {kind for kind, _ in blocks} == {"python", "console"}
    names: dict[str, Any] = {"__name__": page}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, f"{page}.md", "exec"), names)  # our own page
            continue
        for line in text.splitlines():
            command, *words = shlex.split(line.removeprefix("$ "))
            assert command == "sidestream"
            done = ready(*words)
            assert done.returncode == 0, (line, done.stderr)
    names["jobs"].close()
