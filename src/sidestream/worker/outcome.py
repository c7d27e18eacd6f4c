"""Compute the outcome from the exception of an action, without side effects."""

from __future__ import annotations

import traceback
from datetime import UTC, datetime

from sidestream.errors import GiveUp, LockLost, Snooze, SoftLimitExceeded, StoreError
from sidestream.executors.protocol import Acquired, ApplicationChanged, SessionLost, message_of
from sidestream.job.outcome import Fail, Outcome, Release
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.retry_after import retry_after
from sidestream.redaction import redact_text

ERROR_LIMIT = 500
"""Longest error line kept, in characters."""
DETAIL_LIMIT = 16_000
"""Longest traceback kept, in characters; the end is the part that says what happened."""


def outcome_of(error: BaseException, acquired: Acquired) -> Outcome:
    """Return how the attempt that raised ``error`` ends."""
    if isinstance(error, SessionLost):
        return Release(Reason(ReasonCode.SESSION_LOST, {"sqlstate": error.code, "error": str(error)}), None)
    if isinstance(error, StoreError | LockLost):
        return Release(Reason(ReasonCode.LOST, {"error": message_of(error)[:ERROR_LIMIT]}), None)
    if isinstance(error, ApplicationChanged):
        return error.release
    if isinstance(error, GiveUp):
        return Fail(redact_text(message_of(error))[:ERROR_LIMIT], detail_of(error))
    if isinstance(error, Snooze):
        message = redact_text(error.reason)[:ERROR_LIMIT]
        return Release(
            Reason(ReasonCode.SNOOZED, {"seconds": error.delay, "message": message}), int(error.delay * 1000)
        )
    policy = acquired.retry.for_error(error)
    return policy.decide(
        acquired.attempts - acquired.forgiven + 1,
        one_line(error, acquired),
        detail_of(error),
        after=retry_after(error, datetime.now(UTC)),
    )


def one_line(error: BaseException, acquired: Acquired) -> str:
    """Return the line that a person reads first, without what looks like a secret."""
    if isinstance(error, SoftLimitExceeded):
        return f"It ran longer than its soft limit of {acquired.soft_limit:g} s."
    text = redact_text(message_of(error))
    return f"{type(error).__name__}: {text}"[:ERROR_LIMIT] if text else type(error).__name__


def detail_of(error: BaseException) -> str:
    """Return the traceback without what looks like a secret, cut to its end."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as fault:  # noqa: BLE001  # for example a RecursionError: groups within groups
        text = f"{type(error).__name__}: its traceback cannot be shown ({type(fault).__name__})"
    return redact_text(text[-DETAIL_LIMIT:])
