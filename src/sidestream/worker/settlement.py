"""Which call of the broker ends a delivery."""

from __future__ import annotations

from dataclasses import dataclass

from sidestream.broker.protocol import Broker, Delivery
from sidestream.crashpoints import crash_point
from sidestream.job.outcome import Release

BACK = Release(count=False)
"""Back to its place, nothing counted."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """One decision about an ended delivery. The default releases it and counts nothing."""

    #: It is over: forget it.
    settle: bool = False
    #: Error with which a direct job fails.
    fail: str | None = None
    #: The traceback behind that error, or empty.
    detail: str = ""
    #: Otherwise: how it goes back to its lane.
    release: Release = BACK
    #: Run it here, alone, instead of releasing it; while draining, or with another one here, ``release`` counts.
    run_alone: bool = False
    #: Run it here at once, before everything else, instead of releasing it; while draining, ``release`` counts.
    run_again: bool = False

    def apply(self, broker: Broker, delivery: Delivery) -> int:
        """Call ``broker``; return the number of counted releases, else 0. Raises BrokerError."""
        if self.settle:
            crash_point("settle.before_broker")
            broker.settle([delivery])
            crash_point("settle.settled")
            return 0
        if self.fail is not None:
            broker.fail(delivery, self.fail)
            return 0
        crash_point("release.before")
        releases = broker.release(delivery, self.release)
        crash_point("release.released")
        return releases if self.release.count else 0
