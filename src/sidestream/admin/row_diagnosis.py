"""Why a job waits or how it ended, in one sentence, as far as its row and the rules tell. Pure: a table of cases."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sidestream.job.rules import Pause
from sidestream.job.states import State
from sidestream.redaction import redact_text
from sidestream.store.diagnosis import JobDiagnosis
from sidestream.store.job_row import JobRow
from sidestream.store.queries import Row
from sidestream.store.rules import Entry

ERROR_SHOWN = 200
"""Longest piece of an error in a sentence, in characters."""


def why_of_row(facts: JobDiagnosis, entries: Iterable[Entry]) -> str | None:
    """Return the sentence; None when nothing in PostgreSQL keeps the job from starting."""
    job = facts.job
    if facts.state is not State.PENDING:
        return _ended(facts)
    if facts.cancelling:
        return f"Job {job.id} is being cancelled: a person asked for it, and its worker has not carried it out yet."
    if facts.expires_at is not None and facts.expires_at <= facts.now and not job.attempts:
        return f"Job {job.id} was to be started by {moment(facts.expires_at)} and was not: it is about to be cancelled."
    if facts.started_by is not None and facts.started_at is not None:
        return f"Job {job.id} runs on {facts.started_by} since {moment(facts.started_at)}."
    if facts.early:
        return _early(facts)
    entry = pausing(facts.job, entries)
    if entry is not None:
        return f"Job {job.id} waits because {paused(entry)}."
    if facts.before is not None:
        return (
            f"Job {job.id} waits behind job {facts.before.id} ({facts.before.action}), which has the same key "
            f"{job.key!r} and comes first."
        )
    if facts.suspect:
        return f"Job {job.id} waits until a worker can run it alone, because its worker died repeatedly while it ran."
    return None


def pausing(job: JobRow | Row, entries: Iterable[Entry]) -> Entry | None:
    """Return the pause that holds the job back, the widest first; None when nothing is paused."""
    by_pause = {entry.pause: entry for entry in entries if entry.pause is not None}
    if not by_pause:
        return None
    wanted = [Pause(queue=job.queue), Pause(action=job.action)]
    if job.group is not None:
        wanted += [Pause(group=job.group), Pause(action=job.action, group=job.group)]
    return next((by_pause[one] for one in wanted if one in by_pause), None)


def paused(entry: Entry) -> str:
    """Say what is paused, by whom, since when and why, without a full stop."""
    pause = entry.pause
    assert pause is not None
    if pause.queue is not None:
        what = f"the queue {pause.queue!r}"
    elif pause.action is not None:
        what = f"the action {pause.action!r}" + (f" of the group {pause.group!r}" if pause.group is not None else "")
    else:
        what = f"the group {pause.group!r}"
    by = f" by {entry.changed_by}" if entry.changed_by else ""
    note = f" ({entry.note})" if entry.note else ""
    return f"{what} was paused{by} at {moment(entry.changed_at)}{note}"


def moment(when: datetime) -> str:
    """Write a moment for people."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _ended(facts: JobDiagnosis) -> str:
    job, at = facts.job, f" at {moment(facts.ended_at)}" if facts.ended_at is not None else ""
    match facts.state:
        case State.DONE:
            return f"Job {job.id} does not wait: it was done{at}."
        case State.FAILED:
            return f"Job {job.id} does not wait: it failed for good{at}, and its last error was: {short(facts.error)}."
        case _:
            reason = f", because: {short(str(facts.reason))}" if facts.reason else ""
            return f"Job {job.id} does not wait: it was cancelled{at}{reason}."


def _early(facts: JobDiagnosis) -> str:
    job = facts.job
    if job.attempts > facts.forgiven:
        failed = job.attempts - facts.forgiven
        times = "once" if failed == 1 else f"{failed} times"
        return (
            f"Job {job.id} failed {times} and is tried again at {moment(job.run_at)}, and its last error was: "
            f"{short(facts.error)}."
        )
    if job.snoozes:
        return f"Job {job.id} put itself off until {moment(job.run_at)}, because: {short(_snoozed(facts))}."
    return f"Job {job.id} is scheduled for {moment(job.run_at)}."


def _snoozed(facts: JobDiagnosis) -> str:
    reason = facts.reason
    return str(reason.params.get("message", reason)) if reason is not None else ""


def short(text: str | None) -> str:
    """Return the first line of an error, cut to what a sentence may hold and without secrets."""
    line = redact_text(next(iter((text or "").strip().splitlines()), "").rstrip(".")) or "not told"
    return line if len(line) <= ERROR_SHOWN else line[: ERROR_SHOWN - 1] + "…"
