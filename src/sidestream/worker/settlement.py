"""What the broker is told about an ended delivery."""

from __future__ import annotations

from dataclasses import dataclass

from sidestream.broker.protocol import Broker, Delivery
from sidestream.crashpoints import crash_point


@dataclass(frozen=True, slots=True)
class Settlement:
    """One decision. Without arguments: back to its place, nothing counted."""

    #: It is over: forget it.
    settle: bool = False
    #: Error with which a direct job fails.
    fail: str | None = None
    #: The traceback behind that error, or empty.
    detail: str = ""
    #: Milliseconds until it may be claimed again; None lets the delay grow with the releases.
    delay_ms: int | None = 0
    #: Smallest pending id with the same key that stands before it.
    blocked_by: int | None = None
    charge_attempt: bool = False
    charge_crash: bool = False
    #: Whether it counts as a release.
    count: bool = False
    #: It is not due and was never started, so it stands in no line until then.
    unstarted: bool = False
    #: Why it was released.
    reason: str = ""
    #: Run it here, alone, instead of giving it back; while draining, or with another one here, the other fields count.
    alone: bool = False
    #: Run it here at once, before everything else, instead of giving it back; while draining the other fields count.
    again: bool = False

    def tell(self, broker: Broker, delivery: Delivery) -> int:
        """Tell ``broker``; return how often the delivery was released when that counts, else 0. Raises BrokerError."""
        if self.settle:
            crash_point("settle.before_broker")
            broker.settle([delivery])
            crash_point("settle.settled")
            return 0
        if self.fail is not None:
            broker.fail(delivery, self.fail)
            return 0
        crash_point("release.before")
        releases = broker.release(
            delivery,
            delay_ms=self.delay_ms,
            blocked_by=self.blocked_by,
            charge_attempt=self.charge_attempt,
            charge_crash=self.charge_crash,
            count=self.count,
            unstarted=self.unstarted,
        )
        crash_point("release.released")
        return releases if self.count else 0
