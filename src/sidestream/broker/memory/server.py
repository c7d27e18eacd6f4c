"""Let several memory brokers share contents, as processes share a Redis server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sidestream.broker.memory.contents import Contents
from sidestream.broker.memory.keyed import KeyedJobs
from sidestream.broker.memory.parking import Parking
from sidestream.broker.memory.serving import Serving


class Life:
    """The contents from one emptying to the next, with the parts that work on them."""

    def __init__(self, now: Callable[[], int], first_token: int = 0) -> None:
        """Begin empty; tokens continue after ``first_token``."""
        self.contents = Contents(now, first_token)
        self.keyed = KeyedJobs(self.contents)
        self.parking = Parking(self.contents)
        self.serving = Serving(self.contents, self.parking)


class MemoryServer:
    """The contents, their lock, and the clock."""

    def __init__(self, clock_ms: Callable[[], int] | None = None) -> None:
        """Begin empty; ``clock_ms`` returns Unix milliseconds instead of the machine's clock."""
        self.now = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self.changed = threading.Condition()
        self.life = Life(self.now)

    def empty(self) -> None:
        """Lose everything, as an emptied Redis does; tokens continue, so that no old lease is valid."""
        with self.changed:
            self.life = Life(self.now, self.life.contents.tokens)
            self.changed.notify_all()
