"""The same empty job for Celery."""

from __future__ import annotations

import os
from typing import Any

from app_side import SAFE, SOCKET, payload, produce, ran
from celery import Celery

app = Celery("bench", broker=f"redis+socket://{SOCKET}")
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    task_reject_on_worker_lost=SAFE,
    worker_prefetch_multiplier=int(os.environ["BENCH_PREFETCH"]),
    broker_transport_options={"visibility_timeout": 30 if SAFE else 3600},
)


@app.task(name="noop")
def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


if __name__ == "__main__":
    with app.producer_pool.acquire(block=True) as producer:
        produce(lambda number: noop.apply_async((payload(number),), producer=producer))
