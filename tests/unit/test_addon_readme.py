"""Each addon's README says what its manifest and its readme/ fragments say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "addon_readme.py"


def test_the_readmes_are_made_from_the_fragments_as_they_are() -> None:
    ended = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
