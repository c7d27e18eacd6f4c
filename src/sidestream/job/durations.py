"""Parse and format durations: ``15s``, ``200ms``, ``2m``, ``30d``, or a number of seconds."""

from __future__ import annotations

import math
import re

UNITS = {
    "ms": 0.001,
    "s": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
"""Seconds of each unit that a duration or a rate may have."""
EXPECTED = "expected a duration such as 15s, 200ms, 2m, 12h or 30d, or a number of seconds"
_TEXT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-z]*)\s*", re.ASCII)


def parse_duration(value: object) -> float:
    """Return the seconds of a text or a number; raise ValueError for anything else."""
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        unit = UNITS.get(found[2] or "s") if found else None
        if found is None or unit is None:
            raise ValueError(EXPECTED)
        # Divide for milliseconds: 200 * 0.001 is not 0.2.
        seconds = float(found[1]) / 1000 if found[2] == "ms" else float(found[1]) * unit
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise ValueError(EXPECTED)  # pydantic turns a ValueError into a sentence
    if not math.isfinite(seconds):
        raise ValueError(EXPECTED)
    return seconds


def format_duration(seconds: float) -> str:
    """Return the text of a duration in the largest unit that needs no fraction."""
    for unit in ("d", "h", "m"):
        if seconds >= UNITS[unit] and seconds % UNITS[unit] == 0:
            return f"{seconds / UNITS[unit]:.0f}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"
