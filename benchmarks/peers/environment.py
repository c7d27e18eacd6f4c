"""An environment of its own for each peer, made once, so that its pins never meet ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".sidestream-dev" / "peers"
DRAMATIQ = ("dramatiq==2.2.1", "redis==8.1.0", "hiredis==3.5.0")


def environment(name: str, requirements: Sequence[str]) -> Path | None:
    """Return the folder of programs of peer ``name``, installed if need be; None (and why) when it cannot be."""
    folder = FOLDER / name
    marker = folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if marker.exists() and marker.read_text() == wanted:
        return folder / "bin"
    print(f"Installing {', '.join(requirements)} into {folder} ...")
    pip = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(pip), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} cannot be installed, its side is left out: {done.stderr.strip().splitlines()[-1:]}")
            return None
    marker.write_text(wanted)
    return folder / "bin"
