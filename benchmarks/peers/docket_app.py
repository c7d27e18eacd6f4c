"""The same empty job for docket; with ``worker`` it serves."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any

import uvloop
from app_side import URL, payload, produce_async, ran
from docket import Docket, Worker


async def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


async def main() -> None:
    """Produce, or serve until stopped."""
    async with Docket(name="bench", url=URL, execution_ttl=timedelta(0)) as docket:
        docket.register(noop)
        if sys.argv[1] == "worker":
            async with Worker(
                docket,
                concurrency=30,
                minimum_check_interval=timedelta(milliseconds=5),
                redelivery_timeout=timedelta(seconds=10),
            ) as worker:
                await worker.run_forever()
        else:
            await produce_async(lambda number: docket.add(noop)(payload(number)))


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main())
