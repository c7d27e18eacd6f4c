"""``make lint`` reports Lua findings by file and line, and bounds the number of locals."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("luacheck") is None, reason="make lint says how to install luacheck")


@pytest.fixture(scope="module")
def lint() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "lint_lua.py"))


def test_a_finding_names_the_file_that_holds_the_line(lint: dict[str, Any]) -> None:
    chunk = lint["Chunk"]()
    marker = "local function holds("
    assert marker in chunk.source
    chunk.source = chunk.source.replace(marker, "local never_used = 1 " + marker)
    found = lint["check"](chunk)
    assert any("shared/lease.lua:" in line and "never_used" in line for line in found), found


def test_a_chunk_with_too_many_locals_is_refused_before_a_server_does_so(lint: dict[str, Any]) -> None:
    chunk = lint["Chunk"]()
    assert lint["check_locals"](chunk) == []
    chunk.source = f"local {', '.join(f'more_{number}' for number in range(60))}\n{chunk.source}"
    (complaint,) = lint["check_locals"](chunk)
    assert "more than 160 local variables at once" in complaint
