"""Compute due and expiry times from delays, moments and time zones.

A moment without an offset is read from a clock on the wall in ``time_zone``. Twice a year such a clock is odd:

- a time that it skips (02:30 on the night when it goes from 2 to 3) means as long after the skip began: 03:30.
  The job runs that much later by the wall, never earlier, never not at all;
- a time that it shows twice means the first of them; ``fold=1`` in a datetime, or an offset in a text, the second.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from sidestream.errors import InvalidJob


def seconds_of(action: str, name: str, value: object, *, least: str = "0 or more") -> float:
    """Return the seconds of the option ``name``; ``least`` is "0 or more" or "above 0"."""
    seconds: object = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise _wrong(action, name, value, f"expected seconds, {least}")
    if seconds < 0 or (not seconds and least != "0 or more"):
        raise _wrong(action, name, value, f"expected seconds, {least}")
    return float(seconds)


def due_of(
    action: str, now: datetime, run_at: object, delay: object, time_zone: object, local: str | None
) -> datetime | None:
    """Return the due time in UTC, or None for now. ``local``: see :func:`moment_of`."""
    if run_at is not None and delay is not None:
        raise InvalidJob(f"run_at and delay are both given for action {action!r:.80}; give one of them.")
    if run_at is not None:
        return moment_of(action, "run_at", run_at, time_zone, local)
    if delay is None:
        return None
    seconds = seconds_of(action, "delay", delay)
    return _later(action, "delay", delay, now, seconds) if seconds else None


def expiry_of(
    action: str, due: datetime, expires_at: object, expires_in: object, time_zone: object, local: str | None
) -> datetime | None:
    """Return when a job that is due at ``due`` expires, aware, in UTC; None means never."""
    if expires_at is not None and expires_in is not None:
        raise InvalidJob(f"expires_at and expires_in are both given for action {action!r:.80}; give one of them.")
    if expires_in is not None:
        seconds = seconds_of(action, "expires_in", expires_in, least="above 0")
        return _later(action, "expires_in", expires_in, due, seconds)
    return None if expires_at is None else moment_of(action, "expires_at", expires_at, time_zone, local)


def moment_of(action: str, name: str, value: object, time_zone: object, local: str | None = None) -> datetime:
    """Return the moment that an option names, aware, in UTC.

    ``time_zone`` is the caller's; ``local`` is where moments without an offset are from when the caller names none
    (None: they are refused).
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise _wrong(action, name, value, 'expected ISO 8601, for example "2026-12-24 18:00"') from error
    if not isinstance(value, datetime):
        raise _wrong(action, name, value, "expected a datetime, or its text in ISO 8601")
    if value.tzinfo is not None and value.utcoffset() is not None:
        if time_zone is not None:
            raise InvalidJob(
                f"{name}={value.isoformat()} for action {action!r:.80} has an offset of its own and time_zone="
                f"{time_zone!r:.60} is given too; leave one of them out."
            )
        return _utc(action, name, value)
    zone = local if time_zone is None else time_zone
    if zone is None:
        raise no_zone(action, name, value)
    # fold=0, the default, is the offset before the change: a skipped time moves on by the gap, of two it is the first.
    return _utc(action, name, value.replace(tzinfo=zone_of(action, zone)))


def zone_of(action: str, name: object) -> ZoneInfo:
    """Return the time zone ``name`` or raise :class:`~sidestream.errors.InvalidJob`."""
    try:
        if isinstance(name, str) and name:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no name at all; a folder of the time zone database
        pass
    raise InvalidJob(
        f"time_zone={name!r:.60} for action {action!r:.80} is not known here; expected a name such as "
        "'Europe/Brussels' (on a system without time zones, install the package tzdata)."
    )


def no_zone(action: str, name: str, moment: datetime) -> InvalidJob:
    """Return the error for a moment without a time zone."""
    return InvalidJob(
        f"{name}={moment.isoformat()} for action {action!r:.80} has no time zone; give time_zone='Europe/Brussels' or "
        "the like (--time-zone), or add an offset such as +00:00 (to a datetime: tzinfo=timezone.utc)."
    )


def _utc(action: str, name: str, moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise _wrong(action, name, moment.isoformat(), "it is outside the years 1 to 9999") from error


def _later(action: str, name: str, value: object, start: datetime, seconds: float) -> datetime:
    try:
        return start + timedelta(seconds=seconds)
    except OverflowError as error:
        raise InvalidJob(f"{name}={value!r:.60} for action {action!r:.80} ends after the year 9999.") from error


def _wrong(action: str, name: str, value: object, expected: str) -> InvalidJob:
    return InvalidJob(f"{name}={value!r:.60} for action {action!r:.80}: {expected}.")
