"""A separate environment for each peer, created once, so that its pins do not conflict with ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".sidestream-dev" / "peers"
PATIENCE = 300
"""Seconds that pip is given for one peer."""


class CannotInstall(Exception):
    """A peer's environment cannot be made; the message says why."""


def environment(name: str, requirements: Sequence[str]) -> Path:
    """Return the folder of programs of peer ``name``, installed if need be; raise :class:`CannotInstall`."""
    folder = FOLDER / name
    marker = folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if marker.exists() and marker.read_text() == wanted:
        return folder / "bin"
    print(f"Installing {', '.join(requirements)} into {folder} ...", flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)],
        [*_pip(folder / "bin" / "python"), "install", "-q", "--disable-pip-version-check", *requirements],
    ):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise CannotInstall(f"it cannot be installed: pip took over {PATIENCE} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotInstall(f"it cannot be installed: {last[:150]}")
    marker.write_text(wanted)
    return folder / "bin"


def _pip(python: Path) -> list[str]:
    """Return our own pip for ``python``: installing another pip would take longer than most peers."""
    return [sys.executable, "-m", "pip", "--python", str(python)]
