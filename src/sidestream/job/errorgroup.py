"""What errors of one kind have in common: the text without what differs from job to job."""

from __future__ import annotations

import re

LIMIT = 200
"""Longest group in characters."""

_PARTS = (
    (re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"), "…"),  # a uuid
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "…"),  # an address
    (re.compile(r"\b(?=[0-9a-fA-F]*[0-9])(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b"), "…"),  # a hash
    # Numbers with their signs and separators, and what hangs on to them: dates, times, "INV/2024/00017", "10.5".
    (re.compile(r"[+-]?\d+(?:[.,:/\-]\d+)*"), "…"),
    (re.compile(r"…(?:[,; ]+…)+"), "…"),  # lists of ids
)


def error_group(error: str) -> str:
    """Return the first line of ``error`` without ids and numbers; never empty.

    Failed jobs are counted, retried and discarded by it.
    """
    first = next((line for line in error.splitlines() if line.strip()), "")
    text = " ".join(first.split())
    for pattern, instead in _PARTS:
        text = pattern.sub(instead, text)
    return text[:LIMIT] or "(no message)"
