"""Snippets of the documentation can be pasted: names exist, and no id is assumed."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sidestream
from sidestream import errors

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ODOO = {"AccessError", "LockError", "Markup", "MissingError", "RedirectWarning", "UserError", "ValidationError"}
"""Names of Odoo (Markup: of markupsafe) that the pages speak of."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


WITH_BLOCKS = [page for page in PAGES[1:] if blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_text_can_be_imported_from_sidestream(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([A-Z][A-Za-z]*[a-z][A-Za-z]*)(?:\(.*?\))?`", text))
    unknown = {name for name in named if not hasattr(builtins, name)} - ODOO - set(sidestream.__all__)
    # Only the pages for users: a decision record may name a class of ours that is nobody else's.
    inner = {name for name in unknown if not hasattr(errors, name)} if "howto" not in page.parts else set()
    assert unknown - inner == set()


def test_every_public_name_is_there() -> None:
    for name in sidestream.__all__:
        assert getattr(sidestream, name) is not None


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_snippets_define_what_they_use(page: Path) -> None:
    """A page is read from top to bottom: a snippet may use what an earlier one defined."""
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--isolated", "--select", "F821,F822,F823", "--output-format", "concise", "-"]
    done = subprocess.run(command, input="\n".join(blocks(page)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_a_module_of_actions_enqueues_nothing_when_it_is_imported(page: Path) -> None:
    """Every worker imports it."""
    for block in blocks(page):
        if "actions.action(" in block:
            top = [node for node in ast.parse(block).body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
            called = {ast.unparse(call.func) for node in top for call in ast.walk(node) if isinstance(call, ast.Call)}
            assert not any("enqueue" in name or "connect" in name or name == "Jobs" for name in called), called


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_assume_no_id(page: Path) -> None:
    assert re.findall(r"^\$? ?sidestream (?:job|why|priority) (?:\w+ )?\d+", page.read_text(), re.MULTILINE) == []
