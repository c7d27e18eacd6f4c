"""The chaos run knows every crash point of the engine."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.points import POINTS

SOURCE = Path(__file__).parents[2] / "src" / "sidestream"


def test_the_run_knows_every_crash_point() -> None:
    named = [
        name for path in SOURCE.rglob("*.py") for name in re.findall(r'crash_point\("([^"]+)"\)', path.read_text())
    ]
    assert set(named) == set(POINTS)
