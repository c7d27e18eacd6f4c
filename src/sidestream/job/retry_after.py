"""Read the delay that an exception requests: ``retry_after``, or HTTP's ``Retry-After``.

https://www.rfc-editor.org/rfc/rfc9110#name-retry-after: seconds, or a date.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

HEADER = "Retry-After"


def retry_after(error: BaseException, now: datetime) -> float | None:
    """Return the seconds (0 or more) that ``error`` requests; None if it requests no valid time.

    Looked at, in this order: ``error.retry_after`` (seconds, a timedelta, or the header's text), the headers of
    ``error.response`` (requests, httpx), ``error.headers`` (urllib). Raises nothing: all of it is foreign.
    """
    try:
        seconds = _seconds(getattr(error, "retry_after", None), now)
        if seconds is not None:
            return seconds
        for carrier in (getattr(error, "response", None), error):
            headers = getattr(carrier, "headers", None)
            get = getattr(headers, "get", None)
            if callable(get):
                found = get(HEADER)
                seconds = _seconds(get(HEADER.lower()) if found is None else found, now)
                if seconds is not None:
                    return seconds
    except Exception:  # noqa: BLE001  # a property of a foreign class; the failure itself is what has to be told
        return None
    return None


def _seconds(value: object, now: datetime) -> float | None:
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        value = _parsed(value.strip(), now)
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return max(float(value), 0.0)


def _parsed(text: str, now: datetime) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
