"""The same empty job for RQ; with ``worker`` it serves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from app_side import SAFE, URL, payload, produce, ran
from redis import Redis
from rq import Queue, SimpleWorker, Worker

LOT = 1000
queue = Queue("bench", connection=Redis.from_url(URL))


def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


def single(number: int) -> None:
    """Enqueue one job."""
    queue.enqueue("rq_app.noop", payload(number), result_ttl=0)


def bulk(numbers: Sequence[int]) -> None:
    """Enqueue many jobs, a thousand a call."""
    for start in range(0, len(numbers), LOT):
        jobs = [
            Queue.prepare_data("rq_app.noop", (payload(number),), result_ttl=0)
            for number in numbers[start : start + LOT]
        ]
        queue.enqueue_many(jobs)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        kind = Worker if SAFE else SimpleWorker
        kind([queue], connection=queue.connection).work(logging_level="WARNING")
    else:
        produce(single, bulk)
