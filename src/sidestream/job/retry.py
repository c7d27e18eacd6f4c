"""When a failed job is tried again: arithmetic, no input or output."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sidestream.errors import SettingsError
from sidestream.job.outcome import Fail, Retry

MAX_SNOOZES = 100
"""Default maximum number of snoozes; one more and the job fails."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter.

    The nth failure waits ``first_delay * factor ** (n - 1)`` seconds, at most ``max_delay``, of which a share of up to
    ``jitter`` is taken off at random so that jobs that failed together do not come back together.

    ``RetryPolicy(by_exception={ConnectionError: RetryPolicy(max_attempts=20), ValueError: GIVE_UP})`` has policies of
    their own for some classes and what is derived from them; the nearest class of the exception's own order of classes
    (its MRO) decides, and this policy everywhere else. All of them count the same attempts.
    """

    #: Attempts in all, the first one included; the job fails when the last one fails.
    max_attempts: int = 5
    #: Seconds after the first failure.
    first_delay: float = 2.0
    #: How much longer each next delay is.
    factor: float = 2.0
    #: Longest delay, in seconds.
    max_delay: float = 3600.0
    #: Share of the delay (0 to 1) that chance may take off.
    jitter: float = 0.25
    #: Longest wait, in seconds, that an exception may ask for itself (``retry_after``, or HTTP's ``Retry-After``).
    max_retry_after: float = 3600.0
    #: Maximum number of snoozes (:class:`~sidestream.errors.Snooze`); one more and the job fails.
    max_snoozes: int = MAX_SNOOZES
    #: Policies of exception classes.
    by_exception: Mapping[type[BaseException], RetryPolicy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise SettingsError(f"max_attempts={self.max_attempts} is not allowed: expected 1 or more.")
        if self.first_delay < 0 or self.max_delay < 0:
            raise SettingsError("first_delay and max_delay must not be negative; 0 retries at once.")
        if self.factor < 1:
            raise SettingsError(f"factor={self.factor} is not allowed: expected 1 or more.")
        if not 0 <= self.jitter <= 1:
            raise SettingsError(f"jitter={self.jitter} is not allowed: expected a share between 0 and 1.")
        if self.max_retry_after < 0:
            raise SettingsError(f"max_retry_after={self.max_retry_after} is not allowed: expected seconds, 0 or more.")
        if self.max_snoozes < 0:
            raise SettingsError(f"max_snoozes={self.max_snoozes} is not allowed: expected 0 (never) or more.")
        for kind, policy in self.by_exception.items():
            named: object = kind
            if not isinstance(named, type) or not issubclass(named, BaseException):
                raise SettingsError(f"A retry policy is given for {kind!r:.60}: expected a class of exceptions.")
            if not isinstance(policy, RetryPolicy):
                raise SettingsError(
                    f"The retry policy for {kind.__name__} is {policy!r:.60}: expected a RetryPolicy, or GIVE_UP."
                )
            if policy.by_exception:
                raise SettingsError(
                    f"The retry policy for {kind.__name__} has policies by exception of its own; name those classes "
                    "beside it, the nearest one decides."
                )

    def for_error(self, error: BaseException) -> RetryPolicy:
        """Return the policy that decides on ``error``: that of its nearest class, else this one."""
        if self.by_exception:
            for kind in type(error).__mro__:
                if kind in self.by_exception:
                    return self.by_exception[kind]
        return self

    def decide(
        self,
        attempt: int,
        error: str,
        detail: str = "",
        *,
        after: float | None = None,
        chance: Callable[[], float] = random.random,
    ) -> Retry | Fail:
        """Return the outcome after attempt ``attempt`` (1 is the first) failed with ``error``.

        ``after``: seconds that the failure itself asked for (see :func:`sidestream.job.retry_after.retry_after`).
        """
        if attempt >= self.max_attempts:
            return Fail(error, detail)
        if after is None:
            return Retry(self.delay(attempt, chance=chance), error, detail)
        # Never earlier than requested, and spread: the server gave every refused client the same number.
        return Retry(min(after * (1 + self.jitter * chance()), self.max_retry_after), error, detail)

    def delay(self, attempt: int, *, chance: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after failure number ``attempt``."""
        try:
            full = min(self.max_delay, self.first_delay * self.factor ** (attempt - 1))
        except OverflowError:  # beyond any number, so beyond max_delay
            full = self.max_delay
        return full * (1 - self.jitter * chance())


GIVE_UP = RetryPolicy(max_attempts=1)
"""For exceptions that another attempt cannot fix: the job fails immediately."""


def policy_of(action: str, given: object) -> RetryPolicy:
    """Return the policy of a declaration: a policy, or policies by exception class."""
    if isinstance(given, RetryPolicy):
        return given
    if isinstance(given, Mapping):
        return RetryPolicy(by_exception=dict(given))
    raise SettingsError(
        f"retry={given!r:.60} of action {action!r:.80}: expected a RetryPolicy, or a dictionary of exception classes "
        "and policies."
    )
