"""Parts that the peers' applications share. They run in the peer's environment, so they may not import Sidestream.

Run as a script an application produces: ``<peer>_app.py bulk FIRST COUNT`` enqueues these jobs at once, ``<peer>_app.py
pace FIRST COUNT`` one after another, each 20 ms after the one before ran, and prints the times of the calls as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from stamps import Stamps

URL = os.environ["BENCH_REDIS_URL"]
"""Over the unix socket, as all sides."""
SOCKET = URL.removeprefix("unix://")
SAFE = "BENCH_SAFE" in os.environ
"""Whether the settings that survive a crash are asked for."""
PAUSE = 0.02
POLL = 0.002
"""Seconds between two looks at whether the job before has run."""
TOGETHER = 64
"""Calls that are awaited together where a peer has no call for many."""
_stamps = Stamps(Path(os.environ["BENCH_STAMPS"]))


def payload(number: int) -> dict[str, Any]:
    """Return what an integrator would push."""
    return {"model": "sale.order", "record_id": number, "action": "noop", "company_id": 1}


def ran(given: dict[str, Any]) -> None:
    """Note that the job ran: the whole work of it."""
    at = time.time()
    _stamps.hit(given["record_id"], at)


def produce(single: Callable[[int], Any], bulk: Callable[[Sequence[int]], Any] | None = None) -> None:
    """Do what the command line says; ``single`` enqueues one job, ``bulk`` many (left out: one after another)."""
    numbers = _asked()
    if sys.argv[1] == "pace":
        called = []
        for number in numbers:
            while not _may_go(numbers, number):
                time.sleep(POLL)
            time.sleep(PAUSE)
            called.append(time.time())
            single(number)
        print(json.dumps(called))
    elif bulk is not None:
        bulk(numbers)
    else:
        for number in numbers:
            single(number)


async def produce_async(
    single: Callable[[int], Awaitable[Any]], bulk: Callable[[Sequence[int]], Awaitable[Any]] | None = None
) -> None:
    """The same for a peer that speaks asyncio; without ``bulk``, 64 calls are awaited together."""
    numbers = _asked()
    if sys.argv[1] == "pace":
        called = []
        for number in numbers:
            while not _may_go(numbers, number):
                await asyncio.sleep(POLL)
            await asyncio.sleep(PAUSE)
            called.append(time.time())
            await single(number)
        print(json.dumps(called))
    elif bulk is not None:
        await bulk(numbers)
    else:
        for start in range(0, len(numbers), TOGETHER):
            await asyncio.gather(*(single(number) for number in numbers[start : start + TOGETHER]))


def _may_go(numbers: Sequence[int], number: int) -> bool:
    """Whether nothing is left to run, so that the next job meets an idle worker."""
    return number == numbers[0] or _stamps.at(number - 1) > 0


def _asked() -> Sequence[int]:
    first, count = int(sys.argv[2]), int(sys.argv[3])
    return range(first, first + count)
