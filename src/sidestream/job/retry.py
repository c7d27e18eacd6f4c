"""When a failed job is tried again: arithmetic, no input or output."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from sidestream.errors import SettingsError
from sidestream.job.outcome import Bury, Retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter.

    The nth failure waits ``first_delay * factor ** (n - 1)`` seconds, at most ``max_delay``, of which a share of up to
    ``jitter`` is taken off at random so that jobs that failed together do not come back together.
    """

    #: Attempts in all, the first one included; the job is dead when the last one fails.
    max_attempts: int = 5
    #: Seconds after the first failure.
    first_delay: float = 2.0
    #: How much longer each next delay is.
    factor: float = 2.0
    #: Longest delay, in seconds.
    max_delay: float = 3600.0
    #: Share of the delay (0 to 1) that chance may take off.
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise SettingsError(f"max_attempts={self.max_attempts} is not allowed: expected 1 or more.")
        if self.first_delay < 0 or self.max_delay < 0:
            raise SettingsError("first_delay and max_delay must not be negative; 0 retries at once.")
        if self.factor < 1:
            raise SettingsError(f"factor={self.factor} is not allowed: expected 1 or more.")
        if not 0 <= self.jitter <= 1:
            raise SettingsError(f"jitter={self.jitter} is not allowed: expected a share between 0 and 1.")

    def decide(
        self, attempt: int, error: str, detail: str = "", *, chance: Callable[[], float] = random.random
    ) -> Retry | Bury:
        """Return what follows when attempt number ``attempt`` (1 is the first) failed with ``error``."""
        if attempt >= self.max_attempts:
            return Bury(error, detail)
        return Retry(self.delay(attempt, chance=chance), error, detail)

    def delay(self, attempt: int, *, chance: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after failure number ``attempt``."""
        try:
            full = min(self.max_delay, self.first_delay * self.factor ** (attempt - 1))
        except OverflowError:  # beyond any number, so beyond max_delay
            full = self.max_delay
        return full * (1 - self.jitter * chance())
