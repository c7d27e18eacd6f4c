"""Every error that Sidestream raises on purpose. The first line of each docstring is the default message."""

from __future__ import annotations

from datetime import timedelta

LONGEST_SNOOZE = 100 * 366 * 86_400.0
"""Longest delay of a snooze, in seconds; a longer one is a mistake."""


class SidestreamError(Exception):
    """Sidestream failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "Sidestream failed.").splitlines()[0])


class SettingsError(SidestreamError):
    """A setting is missing or malformed."""


class ApplicationError(SettingsError):
    """The user's own code cannot be loaded; the cause is the error that it raised."""


class InvalidJob(SidestreamError, ValueError):
    """The job cannot be enqueued as asked."""


class PayloadTooLarge(InvalidJob):
    """The job's arguments are larger than 64 KiB; store the data and pass its id instead."""


class PayloadNotJson(InvalidJob):
    """The job's arguments are not JSON; pass ids, text, numbers, lists and dictionaries only."""


class InvalidName(InvalidJob):
    """A name has characters that are not allowed."""


class UnknownAction(InvalidJob):
    """No such action is declared."""


class DuplicateAction(InvalidJob):
    """The action is declared twice."""


class UnsupportedOption(InvalidJob):
    """This release does not have that option."""


class WireError(SidestreamError):
    """Bytes in Redis cannot be read."""


class BadReference(WireError):
    """A reference in Redis is truncated or foreign."""


class BadSignature(WireError):
    """The signature of a direct job does not verify."""


class UnknownVersion(WireError):
    """The bytes were written by a release that this one does not know."""


class BrokerError(SidestreamError):
    """The broker failed."""


class BrokerUnavailable(BrokerError):
    """The broker does not answer.

    Its address does not resolve, it refuses the connection, or no answer comes in time.
    """


class BrokerUnsuitable(BrokerError):
    """The broker answers but must not be used.

    Its version, eviction policy, role or access rights do not allow it.
    """


class FormatUnknown(BrokerUnsuitable):
    """The contents of Redis have a format that this release does not know."""


class BrokerFull(BrokerError):
    """The broker has no memory left for writes."""


class StaleGeneration(BrokerError):
    """The broker was emptied or replaced; read its generation again."""


class CapabilityMissing(BrokerError):
    """This broker does not have that capability, for example direct jobs in PostgreSQL."""


class BenchRefused(SidestreamError):
    """The benchmark would disturb real jobs, or cannot run."""


class StoreError(SidestreamError):
    """The store failed."""


class StoreUnavailable(StoreError):
    """PostgreSQL does not answer."""


class SchemaMismatch(StoreError):
    """The Sidestream tables are missing or belong to another release."""


class ForeignDatabase(StoreError):
    """The database is a copy that nobody has adopted, or not the worker's own; its jobs do not run."""


class ActionError(SidestreamError):
    """The action broke a rule."""


class GiveUp(ActionError):
    """The job cannot succeed; it is not retried."""


class Snooze(ActionError):
    """The job is postponed, and no attempt is charged.

    ``raise Snooze(300, "the courier is closed until eight")`` rolls this attempt back and makes the job due again in
    ``delay`` seconds (0 or more, or a timedelta). A job may snooze 100 times, or ``RetryPolicy(max_snoozes=...)``; then
    it fails with the reason.
    """

    def __init__(self, delay: float | timedelta, reason: str = "snoozed") -> None:
        seconds: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < LONGEST_SNOOZE:
            raise InvalidJob(f"Snooze({delay!r:.60}): expected seconds, 0 or more and less than {LONGEST_SNOOZE:.0f}.")
        #: Seconds until the job is due again.
        self.delay = float(seconds)
        #: The reason for people, in one line.
        self.reason = " ".join(str(reason).split()) or "snoozed"
        super().__init__(self.reason)


class SoftLimitExceeded(ActionError):
    """The job's soft time limit passed."""


class CommitRefused(ActionError):
    """An action may not commit or roll back unless it declares commits="relock"."""


class LockLost(ActionError):
    """Another worker has taken the job over after a commit; the job was not continued."""
