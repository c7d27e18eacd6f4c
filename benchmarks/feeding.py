"""Enqueue jobs to drain, through the calls that applications use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from world import World

LOT = 1000
"""Rows in one transaction."""


def payload(number: int) -> dict[str, object]:
    """Return what an integrator would push."""
    return {"model": "sale.order", "record_id": number, "action": "noop", "company_id": 1}


def publish_direct(world: World, size: int, keys: int | None) -> None:
    """Enqueue ``size`` direct jobs, numbered from 0, over ``keys`` ordering keys."""
    with world.jobs() as jobs:
        for number in range(size):
            key = None if keys is None else f"key {number % keys}"
            jobs.enqueue_direct("bench.noop", (payload(number),), key=key, timeout=10)


def enqueue_rows(world: World, action: str, numbers: Sequence[int], *, publish: bool = True) -> list[int]:
    """Enqueue a row for each number, in batches; return their ids. Without ``publish``, they never reach Redis."""
    ids: list[int] = []
    with world.jobs() as jobs, psycopg.connect(world.dsn or "") as connection:
        for start in range(0, len(numbers), LOT):
            lot = [jobs.job(action, (number,)) for number in numbers[start : start + LOT]]
            if publish:
                with jobs.transaction(connection) as tx:
                    ids += tx.enqueue_many(lot)
            else:
                ids += jobs.insert(connection, lot).ids
                connection.commit()
    return ids


def one_value(world: World, query: str) -> Any:
    """Return the single value that ``query`` finds."""
    with psycopg.connect(world.dsn or "", autocommit=True) as connection:
        found = connection.execute(query).fetchone()
    assert found is not None
    return found[0]
