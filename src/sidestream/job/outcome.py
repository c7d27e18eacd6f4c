"""How a delivery ends: the four outcomes, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is committed (or the job was found terminal or gone): the delivery is settled."""


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

    #: Why, one of :class:`ReleaseReason`'s values or a sentence.
    reason: str = ""
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
    #: The action snoozed (:class:`~sidestream.errors.Snooze`): counted apart from other releases.
    snoozed: bool = False
    #: Its PostgreSQL session ended after the job was acquired: the SQLSTATE that was given as the reason, or "".
    lost: str | None = None


class ReleaseReason:
    """The reasons that the engine itself gives for a release."""

    LOCKED = "locked"  # another session holds the row: it runs elsewhere, or a form edits it
    BLOCKED = "blocked"  # a pending job with the same key and a smaller id stands before it
    NOT_DUE = "scheduled"  # its row says later
    UNROUTED = "unrouted"  # no worker here knows the action
    PAUSED = "paused"  # the application is being changed by a person
    CONFLICT = "conflict"  # serialization failures outlasted the loop
    SUSPECT = "suspect"  # its host died repeatedly; it has to run alone
    STOPPING = "stopping"  # this worker is draining, or needs its child back
    LOST = "lost"  # the store or the lease went away under it


Outcome = Done | Retry | Fail | Release
