"""The settings page matches the settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "settings_reference.py"


def test_the_page_is_made_from_the_settings_as_they_are() -> None:
    ended = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
