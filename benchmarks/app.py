"""The actions that the benchmarks run, as an application would declare them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from stamps import Stamps

from sidestream.executors.python.actions import Actions
from sidestream.executors.python.context import Context

STAMPS = "BENCH_STAMPS"
"""Environment variable: the ledger's path."""
EFFECT = "INSERT INTO bench_effect (number, note) VALUES (%(number)s, %(note)s)"
"""What a job of the transactional benchmark does; the bare loop does the same."""

actions = Actions()
_stamps = Stamps(Path(os.environ[STAMPS])) if STAMPS in os.environ else None


def _hit(number: int, at: float) -> None:
    if _stamps is not None:
        _stamps.hit(number, at)


@actions.action("bench.noop", database=False)
def noop(_context: Context, payload: dict[str, Any]) -> None:
    """Note that it ran."""
    at = time.time()
    _hit(payload["record_id"], at)


@actions.action("bench.row")
def row(context: Context, number: int) -> None:
    """Write one row."""
    at = time.time()
    context.cursor.execute(EFFECT, {"number": number, "note": "done in the background"})
    _hit(number, at)


@actions.action("bench.nothing")
def nothing(_context: Context, number: int) -> None:
    """Write nothing but what Sidestream writes."""
    _hit(number, time.time())
