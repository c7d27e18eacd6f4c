"""From what a caller asked for to a checked :class:`~sidestream.job.job.Job`: options are looked at in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sidestream.errors import InvalidJob, UnsupportedOption
from sidestream.job.job import DEFAULT_QUEUE, Job
from sidestream.job.names import check_action, check_key, check_queue

LATER_OPTIONS = frozenset(
    {
        "after",
        "batch",
        "batch_size",
        "concurrency",
        "cron",
        "graph",
        "group",
        "limit",
        "list",
        "priority",
        "rate",
        "replace",
        "schedule",
        "unique",
        "weight",
    }
)
"""Options that the design has and this release has not; they are refused, never ignored."""


def build_job(
    action: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    now: datetime,
    queue: str | None = None,
    key: str | None = None,
    run_at: datetime | None = None,
    delay: float | timedelta | None = None,
    options: Mapping[str, Any] | None = None,
) -> Job:
    """Return the job; ``now`` (aware) is what ``delay`` (seconds or a timedelta) counts from.

    ``options`` are those that the caller gave beyond the named ones. Raises
    :class:`~sidestream.errors.InvalidName`, :class:`~sidestream.errors.UnsupportedOption` and
    :class:`~sidestream.errors.InvalidJob`.
    """
    if options:
        _refuse_options(action, options)
    if isinstance(args, str | bytes | Mapping) or not isinstance(args, Sequence):
        raise InvalidJob(f"args={args!r:.60} for action {action!r:.80}: expected a list or a tuple; write args=[...].")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidJob(f"kwargs={kwargs!r:.60} for action {action!r:.80}: expected a dictionary of names and values.")
    job = Job(
        action,
        tuple(args),
        {} if kwargs is None else kwargs,
        DEFAULT_QUEUE if queue is None else queue,
        key,
        _due(action, now, run_at, delay),
    )
    return check_job(job)


def check_job(job: Job) -> Job:
    """Return ``job`` if it may be enqueued as it stands (names, an aware ``run_at``, no row yet), else raise."""
    check_action(job.action)
    check_queue(job.queue)
    if job.key is not None:
        check_key(job.key)
    if job.id is not None:
        raise InvalidJob(
            f"The job of action {job.action!r} has the id {job.id} already; leave id out, its row gives it."
        )
    if job.run_at is not None and job.run_at.tzinfo is None:
        raise _naive(job.action, job.run_at)
    return job


def _due(action: str, now: datetime, run_at: datetime | None, delay: float | timedelta | None) -> datetime | None:
    if run_at is not None and delay is not None:
        raise InvalidJob(f"run_at and delay are both given for action {action!r:.80}; give one of them.")
    if run_at is not None:
        if not isinstance(run_at, datetime):
            raise InvalidJob(f"run_at={run_at!r:.60} for action {action!r:.80}: expected an aware datetime.")
        if run_at.tzinfo is None:
            raise _naive(action, run_at)
        return run_at.astimezone(UTC)
    if delay is None:
        return None
    seconds: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise InvalidJob(f"delay={delay!r:.60} for action {action!r:.80}: expected seconds, 0 or more.")
    if not seconds:
        return None
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError as error:
        raise InvalidJob(f"delay={delay!r:.60} for action {action!r:.80} ends after the year 9999.") from error


def _naive(action: str, run_at: datetime) -> InvalidJob:
    return InvalidJob(
        f"run_at={run_at.isoformat()} for action {action!r:.80} has no time zone; "
        "make it aware, for example with tzinfo=timezone.utc."
    )


def _refuse_options(action: str, options: Mapping[str, Any]) -> None:
    name = min(options)
    if name in LATER_OPTIONS:
        raise UnsupportedOption(
            f"The option {name!r} for action {action!r:.80} belongs to a later release; "
            "this one has queue, key, run_at and delay."
        )
    raise UnsupportedOption(
        f"There is no option {name!r} (action {action!r:.80}); the options are queue, key, run_at and delay, "
        f"and arguments of the action go into kwargs={{{name!r}: ...}}."
    )
