"""The same empty job for Huey."""

from __future__ import annotations

from typing import Any

from app_side import URL, payload, produce, ran
from huey import RedisHuey

huey = RedisHuey("bench", url=URL, results=False)


@huey.task(name="noop")
def noop(given: dict[str, Any]) -> None:
    """Note that it ran."""
    ran(given)


if __name__ == "__main__":
    import huey_app  # a task is known by its module's name, and the worker's is not __main__

    produce(lambda number: huey_app.noop(payload(number)))
