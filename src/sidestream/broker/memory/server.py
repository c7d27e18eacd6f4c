"""What several memory brokers may share, as processes share a Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sidestream.broker.memory.contents import Contents
from sidestream.broker.memory.lines import Lines
from sidestream.broker.memory.parking import Parking
from sidestream.broker.memory.serving import Serving


class Life:
    """One life of the contents, with the rooms that work on them."""

    def __init__(self, now: Callable[[], int], first_token: int = 0) -> None:
        """Begin empty; tokens go on after ``first_token``."""
        self.contents = Contents(now, first_token)
        self.lines = Lines(self.contents)
        self.parking = Parking(self.contents)
        self.serving = Serving(self.contents, self.parking)


class MemoryServer:
    """The contents, their lock, and the clock."""

    def __init__(self, clock_ms: Callable[[], int] | None = None) -> None:
        """Begin empty; ``clock_ms`` gives Unix milliseconds, the machine's without it."""
        self.now = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self.changed = threading.Condition()
        self.life = Life(self.now)

    def empty(self) -> None:
        """Lose everything, as a Redis does that was emptied; tokens go on, so that no old lease is worth anything."""
        with self.changed:
            self.life = Life(self.now, self.life.contents.tokens)
            self.changed.notify_all()
