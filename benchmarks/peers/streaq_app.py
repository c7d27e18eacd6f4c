"""The same empty job for streaq."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from app_side import URL, payload, produce_async, ran
from streaq import Worker

worker: Any = Worker(redis_url=URL, queue_name="bench", concurrency=16, idle_timeout=10)


@worker.task(name="noop", ttl=0)
async def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


async def single(number: int) -> None:
    """Enqueue one job."""
    await noop.enqueue(payload(number))


async def bulk(numbers: Sequence[int]) -> None:
    """Enqueue many jobs in one call."""
    await worker.enqueue_many([noop.enqueue(payload(number)) for number in numbers])


async def main() -> None:
    """Produce."""
    async with worker:
        await produce_async(single, bulk)


if __name__ == "__main__":
    asyncio.run(main())
