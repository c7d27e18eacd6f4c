"""Define the rules of a database as values: pauses, limits, weights and aging.

Every worker gives the newest version to the broker, so that one change there governs every host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sidestream.errors import SettingsError
from sidestream.job.names import check_action, check_group, check_queue

DEFAULT_AGING = 600.0
"""Seconds for which a job may be ready before every second turn belongs to such as it."""
DEFAULT_WEIGHT = 1.0
MAX_WEIGHT = 1000
MIN_WEIGHT = 0.01
MAX_AGING = 365 * 86_400.0
MIN_RATE, MAX_RATE = 1e-8, 1e6
"""Smallest and largest rate above 0: one start in three years, a million in a second."""
MAX_COUNT = 2**31 - 1
"""Largest concurrency and burst; PostgreSQL stores them as integers."""


class Scope(StrEnum):
    """The scope of a limit: the database, a queue, an action, or each value of a limit key."""

    GLOBAL = "global"
    QUEUE = "queue"
    ACTION = "action"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Limit:
    """How many at once, and how many a second. None: unlimited; 0: none at all."""

    #: Most jobs that run at the same time.
    concurrency: int | None = None
    #: Starts a second, in the long run.
    rate: float | None = None
    #: Starts that may be made at once after a quiet time; at least 1 where there is a rate above 0.
    burst: int = 1

    def __post_init__(self) -> None:
        if self.concurrency is not None and not 0 <= self.concurrency <= MAX_COUNT:
            raise SettingsError(f"concurrency={self.concurrency} is not allowed: expected 0 (none) to {MAX_COUNT}.")
        if self.rate and not MIN_RATE <= self.rate <= MAX_RATE:
            expected = f"expected starts a second, 0 (none) or {MIN_RATE:g} to {MAX_RATE:.0f}"
            raise SettingsError(f"rate={self.rate:g} is not allowed: {expected}.")
        if not 1 <= self.burst <= MAX_COUNT:
            raise SettingsError(f"burst={self.burst} is not allowed: expected 1 to {MAX_COUNT}.")


@dataclass(frozen=True, slots=True)
class Pause:
    """The scope of a pause: a queue, an action, a group, or an action of a group."""

    queue: str | None = None
    action: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.queue is not None:
            if self.action is not None or self.group is not None:
                raise SettingsError("A pause names a queue, or an action, a group, or an action of a group.")
            check_queue(self.queue)
        if self.action is not None:
            check_action(self.action)
        if self.group is not None:
            check_group(self.group)
        if self.queue is None and self.action is None and self.group is None:
            raise SettingsError("A pause has to name a queue, an action or a group.")


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of one database, in one version. Without arguments: no rules."""

    #: Grows with every change; the broker keeps the highest.
    version: int = 0
    #: Seconds for which a job may be ready before every second turn belongs to such as it.
    aging: float = DEFAULT_AGING
    pauses: frozenset[Pause] = frozenset()
    #: By queue; those not named have weight 1.
    queue_weights: Mapping[str, float] = field(default_factory=dict)
    #: By group; those not named have weight 1.
    group_weights: Mapping[str, float] = field(default_factory=dict)
    #: By scope and name: ("global", ""), ("queue", name), ("action", name), ("key", name of the limit rule).
    limits: Mapping[tuple[Scope, str], Limit] = field(default_factory=dict)
    #: A sentence about each stored rule that is out of range and has no effect.
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.aging <= MAX_AGING:
            raise SettingsError(f"aging={self.aging:g} is not allowed: expected seconds, 0 to {MAX_AGING:.0f}.")
        for kind, weights in (("queue", self.queue_weights), ("group", self.group_weights)):
            for name, weight in weights.items():
                check_weight(kind, name, weight)


def check_weight(kind: str, name: str, weight: float) -> float:
    """Return ``weight`` if it may be one, else raise :class:`~sidestream.errors.SettingsError`."""
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise SettingsError(
            f"The weight {weight!r} of the {kind} {name!r} is not allowed: expected {MIN_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}; to stop the {kind}, pause it."
        )
    return weight
