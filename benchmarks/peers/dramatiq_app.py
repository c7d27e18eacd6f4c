"""The same empty job for Dramatiq."""

from __future__ import annotations

from typing import Any

import dramatiq
from app_side import SAFE, URL, payload, produce, ran
from dramatiq.brokers.redis import RedisBroker

_SAFE: dict[str, Any] = {"heartbeat_timeout": 15_000, "maintenance_chance": 1_000_000} if SAFE else {}
dramatiq.set_broker(RedisBroker(url=URL, **_SAFE))


@dramatiq.actor
def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


if __name__ == "__main__":
    produce(lambda number: noop.send(payload(number)))
