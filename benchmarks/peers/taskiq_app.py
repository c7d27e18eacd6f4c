"""The same empty job for taskiq."""

from __future__ import annotations

import asyncio
from typing import Any

from app_side import SAFE, URL, payload, produce_async, ran
from taskiq_redis import ListQueueBroker, RedisStreamBroker

broker: Any = (
    RedisStreamBroker(URL, idle_timeout=10_000, unacknowledged_lock_timeout=10) if SAFE else ListQueueBroker(URL)
)


@broker.task(task_name="noop")
async def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


async def main() -> None:
    """Produce."""
    await broker.startup()
    await produce_async(lambda number: noop.kiq(payload(number)))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
