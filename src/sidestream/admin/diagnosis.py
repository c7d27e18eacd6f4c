"""Why a job waits, in one sentence: what PostgreSQL tells first, then what the broker knows. Pure: a table of cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sidestream.admin.row_diagnosis import moment, paused, pausing, short, why_of_row
from sidestream.broker.protocol import Explanation, Place
from sidestream.errors import WireError
from sidestream.job.job import Job
from sidestream.job.reference import Reference
from sidestream.job.rules import Limit, Scope
from sidestream.job.states import State
from sidestream.store.diagnosis import JobDiagnosis
from sidestream.store.job_row import JobRow
from sidestream.store.rules import Entry

NAMED = 3
"""How many holders of a limit are named."""


def why(
    facts: JobDiagnosis,
    entries: Iterable[Entry],
    explanation: Explanation | None,
    workers: Sequence[Sequence[str]] | None,
    busy: tuple[int, int] | None = None,
) -> str:
    """Return one English sentence.

    Args:
        facts: The row.
        entries: The rules of its database.
        explanation: What the broker says of its reference; None while it is away.
        workers: For each worker that is alive, the names of the queues that it serves of this database; None: unknown.
        busy: Of the children of the workers that serve the job's queue, how many run a job, and how many there are.
    """
    entries = list(entries)
    job = facts.job
    told = why_of_row(facts, entries)
    running = facts.state is State.PENDING and explanation is not None and explanation.place is Place.LEASED
    if told is not None and not running:
        return told
    if explanation is None:
        return f"Job {job.id} is ready, but Redis does not answer: a worker takes it from PostgreSQL within seconds."
    unserved = workers is not None and not any(job.queue in queues for queues in workers)
    if unserved and explanation.place is not Place.LEASED:
        return f"Job {job.id} waits because no worker that is alive serves the queue {job.queue!r}."
    return f"Job {job.id} {_placed(facts, entries, explanation, busy)}."


def why_direct(
    uuid: UUID,
    job: Job,
    entries: Iterable[Entry],
    explanation: Explanation,
    workers: Sequence[Sequence[str]],
) -> str:
    """Return the sentence for a direct job that is not over; ``workers``: the queues of direct jobs of each."""
    entries, name, now = list(entries), f"The direct job {uuid}", datetime.now(UTC)
    due = job.run_at or now
    stored = JobRow(0, job.action, job.queue, job.key, due, group=job.group, limit=job.limit)
    facts = JobDiagnosis(stored, State.PENDING, False, 0, None, None, None, None, False, False, None, None, now, None)
    if explanation.place is Place.NOWHERE:
        return f"{name} was lost by Redis or ends this moment; enqueue it again with its id."
    if explanation.place is not Place.LEASED:
        if job.run_at is not None and explanation.place is Place.DELAYED and now < due:
            return f"{name} is scheduled for {moment(due)}."
        entry = pausing(facts.job, entries)
        if entry is not None:
            return f"{name} waits because {paused(entry)}."
        if not any(job.queue in queues for queues in workers):
            return f"{name} waits because no worker that is alive serves the queue {job.queue!r}."
    return f"{name} {_placed(facts, entries, explanation)}."


def _placed(
    facts: JobDiagnosis, entries: Sequence[Entry], found: Explanation, busy: tuple[int, int] | None = None
) -> str:
    job = facts.job
    free = "waits for a free worker" + (f" ({busy[0]} of {busy[1]} busy)" if busy is not None else "")
    failed = f"; last error: {short(facts.error)}" if job.attempts > facts.forgiven and facts.error else ""
    match found.place:
        case Place.LEASED:
            return f"is with the worker {found.worker}, which runs it or is about to"
        case Place.LIMITED:
            return _limited(facts, entries, found)
        case Place.PAUSED:
            return f"is set aside because its {found.scope} was paused; it comes back by itself within seconds"
        case Place.UNROUTED:
            return f"waits until a worker is started that knows the action {job.action!r}"
        case Place.BEHIND_KEY:
            return f"waits behind {_named(found.holders[:1]) or 'another job'} with the same key {job.key!r}"
        case Place.DELAYED if found.until_ms and found.until_ms <= facts.now.timestamp() * 1000:
            return f"{free}{failed}"  # its time has come, and a worker that asks for jobs will find it
        case Place.DELAYED:
            until = f" until {_at(found.until_ms)}" if found.until_ms else ""
            reason = f", because of the last time: {facts.reason}" if facts.reason else ""
            return f"was handed back and is put off{until}{reason}"
        case Place.READY if found.rank:
            return f"{free} behind {found.rank} other jobs of its group and priority in the queue {job.queue!r}{failed}"
        case Place.READY:
            return f"is the next of its group and priority in the queue {job.queue!r} and {free}{failed}"
        case _:
            return "is open and was not published yet; the reconciler does so within seconds"


def _limited(facts: JobDiagnosis, entries: Sequence[Entry], found: Explanation) -> str:
    job = facts.job
    names = {
        "queue": (f"the queue {job.queue!r}", job.queue),
        "action": (f"the action {job.action!r}", job.action),
        "key": (f"the limit key {job.limit!r}", (job.limit or "").partition(":")[0]),
    }
    what, name = names.get(found.scope, ("everything", ""))
    limits = {(entry.scope, entry.name): entry.limit for entry in entries if entry.limit is not None}
    limit = limits.get((found.scope or Scope.GLOBAL.value, name))
    if found.until_ms:
        rate = f" of {limit.rate:g} a second" if limit is not None and limit.rate is not None else ""
        return f"waits for the rate{rate} of {what}; its next turn is at {_at(found.until_ms)}"
    if limit is not None and _nothing(limit):
        return f"waits because the limit of {what} is 0: nothing of it may start"
    most = f" of {limit.concurrency}" if limit is not None and limit.concurrency is not None else ""
    holders = _named(found.holders)
    return f"waits for the limit{most} of {what}" + (f", which is used up by {holders}" if holders else "")


def _nothing(limit: Limit) -> bool:
    return limit.concurrency == 0 or limit.rate == 0


def _named(holders: Sequence[bytes]) -> str:
    names = [_name(one) for one in holders[:NAMED]]
    if len(holders) > NAMED:
        names.append(f"{len(holders) - NAMED} more")
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""


def _name(raw: bytes) -> str:
    try:
        reference = Reference.unpack(raw)
    except WireError:
        return "a job of another release"
    return f"the direct job {reference.uuid}" if reference.direct else f"job {reference.id}"


def _at(ms: int) -> str:
    return moment(datetime.fromtimestamp(ms / 1000, UTC))
