"""Build a checked job from the arguments and options of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Unpack

from sidestream.errors import InvalidJob
from sidestream.job import uniqueness
from sidestream.job.job import DEFAULT_PRIORITY, DEFAULT_QUEUE, Job, Unique
from sidestream.job.moments import due_of, expiry_of, no_zone
from sidestream.job.names import (
    check_action,
    check_group,
    check_key,
    check_limit,
    check_priority,
    check_queue,
    fit_key,
    fit_limit,
)
from sidestream.job.options import JobOptions, refuse_unknown


def build_job(
    action: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    now: datetime,
    defaults: JobOptions | None = None,
    local: str | None = None,
    **options: Unpack[JobOptions],
) -> Job:
    """Return the job that the call asks for; ``now`` (aware) is what ``delay`` counts from.

    ``defaults`` holds where ``options`` are silent. ``local`` is the time zone of moments that name none; None refuses
    them. Raises :class:`~sidestream.errors.InvalidName`, :class:`~sidestream.errors.UnsupportedOption` and
    :class:`~sidestream.errors.InvalidJob`.
    """
    if options:
        refuse_unknown(action, options)
    check_arguments(action, args, kwargs)
    wanted = _fitted(merged(defaults, options))
    if not wanted:  # a plain job: its action is all that can be wrong
        return Job(check_action(action), tuple(args), {} if kwargs is None else kwargs)
    time_zone = wanted.get("time_zone")
    run_at = due_of(action, now, wanted.get("run_at"), wanted.get("delay"), time_zone, local)
    expires_at = expiry_of(action, run_at or now, wanted.get("expires_at"), wanted.get("expires_in"), time_zone, local)
    if time_zone is not None and wanted.get("run_at") is None and wanted.get("expires_at") is None:
        raise InvalidJob(
            f"time_zone={time_zone!r:.60} for action {action!r:.80} is given without run_at or expires_at; "
            "leave it out."
        )
    return check_job(
        Job(
            action,
            tuple(args),
            {} if kwargs is None else kwargs,
            wanted.get("queue", DEFAULT_QUEUE),
            wanted.get("key"),
            run_at,
            priority=wanted.get("priority", DEFAULT_PRIORITY),
            group=wanted.get("group"),
            limit=wanted.get("limit"),
            unique=uniqueness.unique_of(action, wanted),
            expires_at=expires_at,
        )
    )


def check_arguments(action: str, args: object, kwargs: object) -> None:
    """Raise InvalidJob if these cannot be the arguments of any action."""
    if type(args) is not tuple and (isinstance(args, str | bytes | Mapping) or not isinstance(args, Sequence)):
        raise InvalidJob(f"args={args!r:.60} for action {action!r:.80}: expected a list or a tuple; write args=[...].")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InvalidJob(f"kwargs={kwargs!r:.60} for action {action!r:.80}: expected a dictionary of names and values.")


def check_job(job: Job) -> Job:
    """Return ``job`` if it may be enqueued (names, aware moments, no row yet), else raise."""
    check_action(job.action)
    check_queue(job.queue)
    if job.key is not None:
        check_key(job.key)
    if job.group is not None:
        check_group(job.group)
    if job.limit is not None:
        check_limit(job.limit)
    if job.unique is not None:
        uniqueness.check(job.action, job.unique)
    check_priority(job.priority)
    if job.id is not None:
        raise InvalidJob(
            f"The job of action {job.action!r} has the id {job.id} already; leave id out, its row gives it."
        )
    for name, moment in (("run_at", job.run_at), ("expires_at", job.expires_at)):
        if moment is not None and moment.tzinfo is None:
            raise no_zone(job.action, name, moment)
    if job.run_at is not None and job.expires_at is not None and job.expires_at <= job.run_at:
        raise InvalidJob(
            f"The job of action {job.action!r:.80} expires at {_utc(job.expires_at)}, before it is due at "
            f"{_utc(job.run_at)}, so it would never run; give expires_in, which counts from when it is due."
        )
    return job


_TOGETHER = (("expires_at", "expires_in"), ("unique", *uniqueness.SHORT_FORMS))
"""Options that are one answer: a call that gives one of them gets none of the others from a declaration."""


def merged(defaults: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given, and where nothing was given what is declared; None is never in it."""
    given = {name: value for name, value in options.items() if value is not None}
    if not defaults:
        return given
    decided = {name for group in _TOGETHER if not given.keys().isdisjoint(group) for name in group}
    declared = {name: value for name, value in defaults.items() if value is not None and name not in decided}
    return declared | given


def _fitted(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the options with each key, group, limit and unique text as it may be stored."""
    for name, fit in (("key", fit_key), ("group", fit_key), ("limit", fit_limit), ("unique", fit_key)):
        if name in wanted:
            given = wanted[name]
            if isinstance(given, Unique):
                key = fit_key(given.key)
                wanted[name] = given if key == given.key else replace(given, key=key)
            else:
                wanted[name] = fit(given)
    return wanted


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
