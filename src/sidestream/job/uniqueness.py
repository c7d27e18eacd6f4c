"""Build and check a ``Unique`` from the options about duplicates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sidestream.errors import InvalidJob
from sidestream.job.job import Unique
from sidestream.job.moments import seconds_of
from sidestream.job.names import check_unique

UNTIL = ("started", "done", "window")
ON_CONFLICT = ("return", "replace", "newest")
SHORT_FORMS = ("unique_until", "unique_for", "on_conflict")
"""Options that complete a ``unique`` which is a text."""


def unique_of(action: str, options: Mapping[str, Any]) -> Unique | None:
    """Return what the options say of duplicates; None when they say nothing.

    Raises :class:`~sidestream.errors.InvalidJob` and :class:`~sidestream.errors.InvalidName`.
    """
    given = {name: options[name] for name in SHORT_FORMS if options.get(name) is not None}
    unique = options.get("unique")
    if unique is None:
        if given:
            raise InvalidJob(
                f"{min(given)} is given for action {action!r:.80} without unique; add unique='text', the same for "
                "jobs that are duplicates of each other."
            )
        return None
    if isinstance(unique, Unique):
        if given:
            raise InvalidJob(
                f"{min(given)} is given for action {action!r:.80} beside a Unique, which says it itself; leave it out."
            )
        return check(action, unique)
    until: Any
    window: object
    until, window = given.get("unique_until"), given.get("unique_for")
    seconds = 0.0 if window is None else seconds_of(action, "unique_for", window, least="above 0")
    if until is None:
        until = "done" if window is None else "window"
    if window is not None and until != "window":
        raise InvalidJob(
            f"unique_for={window!r:.60} and unique_until={until!r:.60} for action {action!r:.80} contradict each "
            "other; a window has a length, the others have none."
        )
    return check(action, Unique(unique, until, seconds, given.get("on_conflict", "return")))


def check(action: str, unique: Unique) -> Unique:
    """Return ``unique`` if it makes sense, else raise."""
    check_unique(unique.key)
    if unique.until not in UNTIL:
        raise _policy(action, "unique_until", unique.until, UNTIL)
    if unique.on_conflict not in ON_CONFLICT:
        raise _policy(action, "on_conflict", unique.on_conflict, ON_CONFLICT)
    seconds: object = unique.seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise InvalidJob(f"The window of {seconds!r:.60} s for action {action!r:.80}: expected seconds above 0.")
    if (unique.until == "window") != (seconds > 0):
        raise InvalidJob(
            f"unique_until={unique.until!r} with a window of {seconds:g} s for action {action!r:.80}: a window needs "
            "its length in seconds (unique_for=60), the others have none."
        )
    return unique


def declared_unique(action: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a declaration's ``options`` with the short forms made into one Unique."""
    rest = {name: value for name, value in options.items() if name not in SHORT_FORMS}
    if len(rest) != len(options):
        rest["unique"] = unique_of(action, options)
    return rest


def _policy(action: str, name: str, value: object, known: tuple[str, ...]) -> InvalidJob:
    *others, last = map(repr, known)
    return InvalidJob(f"{name}={value!r:.60} for action {action!r:.80}: expected {', '.join(others)} or {last}.")
