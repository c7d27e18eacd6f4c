"""The same empty job for arq."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from app_side import SOCKET, payload, produce_async, ran
from arq import create_pool
from arq.connections import RedisSettings

REDIS = RedisSettings(unix_socket_path=SOCKET)


async def noop(_context: Any, given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


class Settings:
    """Of the worker."""

    functions: ClassVar = [noop]
    redis_settings = REDIS
    max_jobs = 100
    poll_delay = 0.01
    keep_result = 0
    job_timeout = 20


async def main() -> None:
    """Produce."""
    pool = await create_pool(REDIS)
    await produce_async(lambda number: pool.enqueue_job("noop", payload(number)))
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main())
