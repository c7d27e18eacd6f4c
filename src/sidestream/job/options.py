"""Define the options of a job in one place, and refuse every other one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal, TypedDict

from sidestream.errors import UnsupportedOption
from sidestream.job.job import Unique

Seconds = float | timedelta
"""A length of time: seconds, or a timedelta."""
Moment = datetime | str
"""A datetime, or its ISO 8601 text."""


class JobOptions(TypedDict, total=False):
    """The options of every way in; None means "not given" for each."""

    #: The backlog it waits in; else the action's own, else ``default``.
    queue: str | None
    #: Jobs with the same key run one at a time, in the order of their ids.
    key: str | None
    #: 0 (first) to 9 within its queue; 5 unless said otherwise.
    priority: int | None
    #: The tenant among whom the queue is shared fairly.
    group: str | None
    #: What it counts against: ``rule`` or ``rule:value``, for example ``courier:7``.
    limit: str | None
    #: What makes another job a duplicate of it: a text, or a :class:`~sidestream.job.job.Unique` that says it all.
    unique: Unique | str | None
    #: Until when the text counts: "started", "done" (unless said otherwise) or "window".
    unique_until: Literal["started", "done", "window"] | None
    #: Length of the window; given alone it means ``unique_until="window"``.
    unique_for: Seconds | None
    #: What becomes of a duplicate: "return" (unless said otherwise), "replace" or "newest".
    on_conflict: Literal["return", "replace", "newest"] | None
    #: Not before this moment.
    run_at: Moment | None
    #: Where the clock hangs that ``run_at`` and ``expires_at`` without an offset were read from: "Europe/Brussels".
    time_zone: str | None
    #: Not before so long from now.
    delay: Seconds | None
    #: It ends as cancelled when it has not started by then.
    expires_at: Moment | None
    #: The same, counted from when it is due.
    expires_in: Seconds | None


JOB_OPTIONS = tuple(JobOptions.__annotations__)
"""Their names."""

_OF_RULES = {
    "aging": "'sidestream aging set'",
    "burst": "'sidestream limit set ... --burst'",
    "concurrency": "'sidestream limit set ... --concurrency'",
    "rate": "'sidestream limit set ... --rate'",
    "weight": "'sidestream queue weight' or 'sidestream group weight'",
}
_OTHER_WORDS = {"replace": 'on_conflict="replace"', "eta": "run_at", "countdown": "delay", "identity_key": "unique"}
LATER_OPTIONS = frozenset({"after", "batch", "batch_size", "cron", "graph", "list", "schedule"})
"""Options that the design has and this release has not; they are refused, never ignored."""


def refuse_unknown(action: str, names: Iterable[str]) -> None:
    """Raise UnsupportedOption for the first of ``names`` that is no option."""
    unknown = sorted(set(names).difference(JOB_OPTIONS))
    if not unknown:
        return
    name = unknown[0]
    if name in LATER_OPTIONS:
        raise UnsupportedOption(
            f"The option {name!r} for action {action!r:.80} belongs to a later release; this one has "
            f"{', '.join(JOB_OPTIONS)}."
        )
    if name in _OF_RULES:
        raise UnsupportedOption(
            f"{name!r} (action {action!r:.80}) is a rule for many jobs, not an option of one; set it with "
            f"{_OF_RULES[name]}, and give the job limit='rule:value' where it counts against a rule of its own."
        )
    if name in _OTHER_WORDS:
        raise UnsupportedOption(f"There is no option {name!r} (action {action!r:.80}); it is {_OTHER_WORDS[name]}.")
    raise UnsupportedOption(
        f"There is no option {name!r} (action {action!r:.80}); the options are {', '.join(JOB_OPTIONS)}, "
        f"and arguments of the action go into kwargs={{{name!r}: ...}}."
    )
