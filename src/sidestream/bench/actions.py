"""The actions that ``sidestream bench`` runs. They only record that they ran."""

from __future__ import annotations

import os
from pathlib import Path

from sidestream.bench.ledger import Ledger
from sidestream.executors.python.actions import Actions
from sidestream.executors.python.context import Context

LEDGER = "BENCH_LEDGER_OF_SIDESTREAM"
"""Environment variable with the ledger's path. (Names that begin with ``SIDESTREAM_`` are settings.)"""
QUEUE = "bench"
"""The queue of both actions, which exists only in the benchmark's own shard and schema."""
EMPTY = "sidestream.bench.empty"
ROW = "sidestream.bench.row"

actions = Actions()
_ledger = Ledger(Path(os.environ[LEDGER])) if LEDGER in os.environ else None


def _hit(number: int) -> None:
    assert _ledger is not None, f"{LEDGER} is not set; only sidestream bench starts a worker with these actions."
    _ledger.record(number)


@actions.action(EMPTY, database=False, queue=QUEUE)
def empty(_context: Context, payload: dict[str, int]) -> None:
    """Run as a direct job, without a transaction."""
    _hit(payload["record_id"])


@actions.action(ROW, queue=QUEUE)
def row(_context: Context, number: int) -> None:
    """Run in a transaction in which only Sidestream writes."""
    _hit(number)
