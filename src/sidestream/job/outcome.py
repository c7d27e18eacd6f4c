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
    """Handed back: no attempt is charged."""

    #: Why, one of :class:`ReleaseReason`'s values or a sentence.
    reason: str
    #: Seconds until the job may be claimed again; None lets the delay grow with the number of releases.
    delay: float | None = None
    #: The smallest pending id with the same key that stands before this job, when that is the reason.
    blocked_by: int | None = None
    #: The action put itself off (:class:`~sidestream.errors.Snooze`): counted apart from other releases.
    snoozed: bool = False
    #: It is not due and was never started, so it stands in no line until then.
    unstarted: bool = False
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
