"""The README's table of capabilities matches the brokers."""

from __future__ import annotations

import runpy
from pathlib import Path

from sidestream.broker.protocol import Capability

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_lists_the_brokers_capabilities() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "capability_table.py"))
    assert set(script["MEANINGS"]) == set(Capability)
    assert script["table"]() in (ROOT / "README.md").read_text(encoding="utf-8")
