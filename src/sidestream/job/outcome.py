"""How a delivery ends: the four outcomes, as values."""

from __future__ import annotations

from dataclasses import dataclass

from sidestream.job.reason import Reason, ReasonCode

_RELEASED = Reason(ReasonCode.RELEASED)


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is committed (or the job had ended or no longer exists): settle the delivery."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed and another one follows."""

    #: Seconds until the job is due again.
    delay: float
    #: What went wrong, for people: one line.
    error: str
    #: The traceback, or empty.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Fail:
    """The job fails."""

    #: Why, for people: one line.
    error: str
    #: The traceback, or empty.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """The job goes back to its lane. The same value travels from the child to the broker."""

    #: Why.
    reason: Reason = _RELEASED
    #: Milliseconds until it may be claimed again: 0 puts it back at its old place; None lets the delay grow with the
    #: number of releases (50 ms, doubling to 30 s).
    delay_ms: int | None = 0
    #: The smallest pending id with the same key, which comes before this job: it goes back behind its key.
    blocked_by: int | None = None
    #: Count this release.
    count: bool = True
    #: Count a failed attempt (the broker does for direct jobs, the row for others) and restart the release count.
    #: With a delay it is a retry, which keeps the head of its key.
    charge_attempt: bool = False
    #: The same for an attempt that crashed its process.
    charge_crash: bool = False
    #: It is not due and never started: until then it holds no place behind its key.
    unstarted: bool = False


Outcome = Done | Retry | Fail | Release
