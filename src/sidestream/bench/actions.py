"""The actions that ``sidestream bench`` runs. They note that they ran, and do nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from sidestream.bench.ledger import Ledger
from sidestream.executors.python.actions import Actions
from sidestream.executors.python.context import Context

LEDGER = "BENCH_LEDGER_OF_SIDESTREAM"
"""Environment variable: the ledger's path. (``SIDESTREAM_...`` are the settings.)"""
QUEUE = "bench"
"""The queue of both; it exists in the bench's own room only."""
EMPTY = "sidestream.bench.empty"
ROW = "sidestream.bench.row"

actions = Actions()
_ledger = Ledger(Path(os.environ[LEDGER])) if LEDGER in os.environ else None


def _hit(number: int) -> None:
    assert _ledger is not None, f"{LEDGER} is not set; only sidestream bench starts a worker with these actions."
    _ledger.hit(number)


@actions.action(EMPTY, database=False, queue=QUEUE)
def empty(_context: Context, payload: dict[str, int]) -> None:
    """A direct job: no transaction."""
    _hit(payload["record_id"])


@actions.action(ROW, queue=QUEUE)
def row(_context: Context, number: int) -> None:
    """A transactional job that writes nothing but what Sidestream writes."""
    _hit(number)
