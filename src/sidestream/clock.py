"""Define the clock that components receive, so that tests can move time.

Stored and compared times are aware datetimes in UTC; durations are seconds (float) unless a name ends in ``_ms``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The source of time for the engine."""

    def now(self) -> datetime:
        """Return the wall-clock time as an aware datetime in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards; only differences are meaningful."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return :func:`time.monotonic`."""
        return time.monotonic()
