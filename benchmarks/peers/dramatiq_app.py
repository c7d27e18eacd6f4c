"""The same empty job for Dramatiq. Run as a script it enqueues: ``dramatiq_app.py NUMBER``; else a worker imports it.

Lives in an environment of its own (see peers/environment.py), so it may not import Sidestream.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from stamps import Stamps

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS_URL"]))
_stamps = Stamps(Path(os.environ["BENCH_STAMPS"]))


@dramatiq.actor
def noop(payload: dict[str, Any]) -> None:
    """Note that it ran."""
    _stamps.hit(payload["record_id"], time.time())


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        noop.send({"model": "sale.order", "record_id": number, "action": "noop", "company_id": 1})
