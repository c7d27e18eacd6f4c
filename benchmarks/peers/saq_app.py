"""The same empty job for SAQ."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from app_side import URL, payload, produce_async, ran
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
queue = RedisQueue(Redis.from_url(URL), name="bench")


async def noop(_context: Any, *, given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


settings = {"queue": queue, "functions": [noop], "concurrency": 20}


async def single(number: int) -> None:
    """Enqueue one job."""
    await queue.enqueue("noop", given=payload(number), ttl=-1, timeout=20, heartbeat=6, retries=3)


async def main() -> None:
    """Produce."""
    await queue.connect()
    await produce_async(single)
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(main())
