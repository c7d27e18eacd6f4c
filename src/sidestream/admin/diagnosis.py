"""Why a job waits or how it ended: pure functions from what PostgreSQL and the broker know to a :class:`Diagnosis`.

:mod:`sidestream.admin.diagnosis_text` renders it in English for the command line; the addon, in its reader's language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sidestream.broker.protocol import Explanation, Place
from sidestream.errors import WireError
from sidestream.job.job import Job
from sidestream.job.names import limit_rule
from sidestream.job.reference import Reference
from sidestream.job.rules import Pause, Scope
from sidestream.job.states import State
from sidestream.redaction import redact_text
from sidestream.store.diagnosis import JobDiagnosis
from sidestream.store.job_row import JobRow
from sidestream.store.queries import Row
from sidestream.store.rules import Entry

MOST_HOLDERS = 3
"""How many holders of a limit a diagnosis names."""
ERROR_SHOWN = 200
"""Longest piece of an error in a diagnosis, in characters."""


class Code(StrEnum):
    """What a diagnosis says; the comments name its parameters.

    at: an aware moment in UTC. error: one line without secrets, or None. reason: a Reason, or None. scope: a Scope.
    holders: at most three jobs, each the id of a row, the uuid of a direct job, or None if another release wrote it;
    more: how many others. busy: None, or how many children run a job and how many there are.
    """

    # -- the row tells
    DONE = "done"  # at
    FAILED = "failed"  # at, error
    CANCELLED = "cancelled"  # at, reason
    CANCELLING = "cancelling"
    EXPIRING = "expiring"  # at
    RUNNING = "running"  # worker, at
    HELD = "held"
    RETRYING = "retrying"  # failures, at, error
    SNOOZED = "snoozed"  # at, reason
    SCHEDULED = "scheduled"  # at
    PAUSED = "paused"  # queue, action, group (None: not of one), by, at, note
    BEHIND_JOB = "behind_job"  # id, action, key
    SUSPECT = "suspect"
    # -- the broker tells
    NO_BROKER = "no_broker"
    UNSERVED = "unserved"  # queue
    LEASED = "leased"  # worker
    LIMITED = "limited"  # scope, name, concurrency, holders, more
    RATE_LIMITED = "rate_limited"  # scope, name, rate, at
    LIMIT_ZERO = "limit_zero"  # scope, name
    UNPAUSING = "unpausing"  # scope (see Explanation)
    UNROUTED = "unrouted"  # action
    BEHIND_KEY = "behind_key"  # holders, more, key
    READY = "ready"  # rank, queue, group, busy, error
    DUE = "due"  # busy, error
    DELAYED = "delayed"  # at, reason
    UNPUBLISHED = "unpublished"
    LOST = "lost"  # a direct job only


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a job waits or how it ended."""

    code: Code
    params: Mapping[str, Any] = field(default_factory=dict)


def diagnose(
    facts: JobDiagnosis,
    entries: Iterable[Entry],
    explanation: Explanation | None,
    workers: Sequence[Sequence[str]] | None,
    busy: tuple[int, int] | None = None,
) -> Diagnosis:
    """Return the diagnosis of a row's job.

    Args:
        facts: The row.
        entries: The rules of its database.
        explanation: What the broker says about its reference; None while the broker does not answer.
        workers: For each live worker, the queues of this database that it serves; None: unknown.
        busy: Of the children of the workers that serve the job's queue, how many run a job, and how many there are.
    """
    entries = list(entries)
    by_row = diagnose_row(facts, entries)
    running = facts.state is State.PENDING and explanation is not None and explanation.place is Place.LEASED
    if by_row is not None and not running:
        return by_row
    if explanation is None:
        return Diagnosis(Code.NO_BROKER)
    if explanation.place is not Place.LEASED and workers is not None and _is_unserved(facts.job.queue, workers):
        return Diagnosis(Code.UNSERVED, {"queue": facts.job.queue})
    return _diagnose_place(facts, entries, explanation, busy)


def diagnose_direct(
    job: Job, entries: Iterable[Entry], explanation: Explanation, workers: Sequence[Sequence[str]]
) -> Diagnosis:
    """Return the diagnosis of a direct job that has not ended; ``workers``: the queues of direct jobs of each."""
    entries, now = list(entries), datetime.now(UTC)
    due = job.run_at or now
    row = JobRow(0, job.action, job.queue, job.key, due, group=job.group, limit=job.limit)
    facts = JobDiagnosis(row, State.PENDING, False, 0, None, None, None, None, False, False, None, None, now, None)
    if explanation.place is Place.NOWHERE:
        return Diagnosis(Code.LOST)
    if explanation.place is not Place.LEASED:
        if job.run_at is not None and explanation.place is Place.DELAYED and now < due:
            return Diagnosis(Code.SCHEDULED, {"at": due})
        paused = _diagnose_pause(row, entries)
        if paused is not None:
            return paused
        if _is_unserved(job.queue, workers):
            return Diagnosis(Code.UNSERVED, {"queue": job.queue})
    return _diagnose_place(facts, entries, explanation, None)


def diagnose_row(facts: JobDiagnosis, entries: Iterable[Entry]) -> Diagnosis | None:
    """Return what the row and the rules tell; None when nothing in PostgreSQL keeps the job from starting."""
    job = facts.job
    if facts.state is State.DONE:
        return Diagnosis(Code.DONE, {"at": facts.ended_at})
    if facts.state is State.FAILED:
        return Diagnosis(Code.FAILED, {"at": facts.ended_at, "error": shorten(facts.error)})
    if facts.state is State.CANCELLED:
        return Diagnosis(Code.CANCELLED, {"at": facts.ended_at, "reason": facts.reason})
    if facts.cancelling:
        return Diagnosis(Code.CANCELLING)
    if facts.started_by is not None and facts.started_at is not None:
        return Diagnosis(Code.RUNNING, {"worker": facts.started_by, "at": facts.started_at})
    if facts.running:
        return Diagnosis(Code.HELD)
    if facts.expires_at is not None and facts.expires_at <= facts.now and not job.attempted:
        return Diagnosis(Code.EXPIRING, {"at": facts.expires_at})
    if facts.early:
        return _diagnose_early(facts)
    paused = _diagnose_pause(job, entries)
    if paused is not None:
        return paused
    if facts.before is not None:
        return Diagnosis(Code.BEHIND_JOB, {"id": facts.before.id, "action": facts.before.action, "key": job.key})
    return Diagnosis(Code.SUSPECT) if facts.suspect else None


def pause_of(job: JobRow | Row, entries: Iterable[Entry]) -> Entry | None:
    """Return the pause that holds the job back, the widest first; None when nothing is paused."""
    by_pause = {entry.pause: entry for entry in entries if entry.pause is not None}
    if not by_pause:
        return None
    wanted = [Pause(queue=job.queue), Pause(action=job.action)]
    if job.group is not None:
        wanted += [Pause(group=job.group), Pause(action=job.action, group=job.group)]
    return next((by_pause[one] for one in wanted if one in by_pause), None)


def shorten(text: str | None) -> str | None:
    """Return the first line of an error, at most 200 characters and without secrets; None when there is none."""
    line = redact_text(next(iter((text or "").strip().splitlines()), "").rstrip("."))
    return (line if len(line) <= ERROR_SHOWN else line[: ERROR_SHOWN - 1] + "…") or None


def _diagnose_pause(job: JobRow, entries: Iterable[Entry]) -> Diagnosis | None:
    entry = pause_of(job, entries)
    if entry is None or entry.pause is None:
        return None
    by = {"by": entry.changed_by, "at": entry.changed_at, "note": entry.note}
    return Diagnosis(Code.PAUSED, asdict(entry.pause) | by)


def _diagnose_early(facts: JobDiagnosis) -> Diagnosis:
    job = facts.job
    if job.attempts > facts.forgiven:
        failures = job.attempts - facts.forgiven
        return Diagnosis(Code.RETRYING, {"failures": failures, "at": job.run_at, "error": shorten(facts.error)})
    if job.snoozes:
        return Diagnosis(Code.SNOOZED, {"at": job.run_at, "reason": facts.reason})
    return Diagnosis(Code.SCHEDULED, {"at": job.run_at})


def _diagnose_place(
    facts: JobDiagnosis, entries: Sequence[Entry], found: Explanation, busy: tuple[int, int] | None
) -> Diagnosis:
    job = facts.job
    waits = {"busy": busy, "error": shorten(facts.error) if job.attempts > facts.forgiven else None}
    match found.place:
        case Place.LEASED:
            return Diagnosis(Code.LEASED, {"worker": found.worker})
        case Place.LIMITED:
            return _diagnose_limit(job, entries, found)
        case Place.PAUSED:
            return Diagnosis(Code.UNPAUSING, {"scope": found.scope})
        case Place.UNROUTED:
            return Diagnosis(Code.UNROUTED, {"action": job.action})
        case Place.BEHIND_KEY:
            return Diagnosis(Code.BEHIND_KEY, {**_holders(found.holders[:1]), "key": job.key})
        case Place.DELAYED if found.until_ms and found.until_ms <= facts.now.timestamp() * 1000:
            return Diagnosis(Code.DUE, waits)  # its time has come, and a worker that asks for jobs will find it
        case Place.DELAYED:
            return Diagnosis(Code.DELAYED, {"at": _time(found.until_ms), "reason": facts.reason})
        case Place.READY:
            return Diagnosis(Code.READY, {"rank": found.rank, "queue": job.queue, "group": job.group, **waits})
        case _:
            return Diagnosis(Code.UNPUBLISHED)


def _diagnose_limit(job: JobRow, entries: Sequence[Entry], found: Explanation) -> Diagnosis:
    scope = Scope(found.scope or Scope.GLOBAL.value)
    names = {
        Scope.QUEUE: job.queue,
        Scope.ACTION: job.action,
        Scope.KEY: "" if job.limit is None else limit_rule(job.limit),
    }
    limits = {(entry.scope, entry.name): entry.limit for entry in entries if entry.limit is not None}
    limit = limits.get((scope.value, names.get(scope, "")))
    what = {"scope": scope, "name": job.limit if scope is Scope.KEY else names.get(scope, "")}
    if found.until_ms:
        rate = None if limit is None else limit.rate
        return Diagnosis(Code.RATE_LIMITED, {**what, "rate": rate, "at": _time(found.until_ms)})
    if limit is not None and (limit.concurrency == 0 or limit.rate == 0):
        return Diagnosis(Code.LIMIT_ZERO, what)
    concurrency = None if limit is None else limit.concurrency
    return Diagnosis(Code.LIMITED, {**what, "concurrency": concurrency, **_holders(found.holders)})


def _holders(packed: Sequence[bytes]) -> dict[str, Any]:
    return {"holders": [_holder(one) for one in packed[:MOST_HOLDERS]], "more": max(0, len(packed) - MOST_HOLDERS)}


def _holder(packed: bytes) -> int | UUID | None:
    try:
        reference = Reference.unpack(packed)
    except WireError:
        return None
    return reference.uuid or reference.id


def _is_unserved(queue: str, workers: Sequence[Sequence[str]]) -> bool:
    return not any(queue in queues for queues in workers)


def _time(ms: int) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
