"""Direct jobs for people: one of them and why it waits, the failed ones, and what is done to them. They have no row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sidestream.admin.diagnosis import diagnose_direct
from sidestream.admin.diagnosis_text import render
from sidestream.admin.jobs import live_workers, served_queues
from sidestream.broker.protocol import Explanation, Place, Publication, lane
from sidestream.broker.redis import keys
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.failed import FailedDirectJob, FailedDirectJobs
from sidestream.job.codec import peek, to_ms
from sidestream.job.errorgroup import error_group
from sidestream.job.job import Job
from sidestream.job.reference import NO_TAG8, direct_reference
from sidestream.settings import Settings
from sidestream.store import rules
from sidestream.store.bulk import LOT, ErrorGroup, Filter
from sidestream.wiring.client import build_broker, store_cursor, store_url

MOST_ACTIONS = 10
"""Most actions that are named of jobs whose errors are alike."""


@dataclass(frozen=True, slots=True)
class DirectJob:
    """A direct job that is not over."""

    uuid: UUID
    #: As its signed bytes say.
    job: Job
    place: Place
    #: Why it waits.
    why: str


Found = DirectJob | FailedDirectJob


def find(settings: Settings, uuid: UUID) -> Found | None:
    """Return a direct job; None when Redis holds none of that id (it is done, discarded, or never was)."""
    with _broker(settings) as broker:
        failed = FailedDirectJobs(broker).get(uuid)
        if failed is not None:
            return failed
        payload = broker.connection.run("HGET", keys.direct(broker.prefix), uuid.bytes)
        if payload is None:
            return None
        job = peek(payload)
        explanation = broker.explain(_publication(uuid, job)) if broker.generation().number else None
        serving = served_queues(live_workers(settings, broker), lane(NO_TAG8, ""))
    entries = []
    if store_url(settings) is not None:
        with store_cursor(settings) as cursor:
            entries = rules.entries(cursor)
    place = explanation.place if explanation is not None else Place.NOWHERE
    diagnosis = diagnose_direct(job, entries, explanation or Explanation(place), serving)
    return DirectJob(uuid, job, place, render(f"The direct job {uuid}", diagnosis))


def cancel(settings: Settings, uuid: UUID) -> bool:
    """Remove a direct job that waits; False when it runs or is not there."""
    with _broker(settings) as broker:
        payload = broker.connection.run("HGET", keys.direct(broker.prefix), uuid.bytes)
        return payload is not None and broker.discard(_publication(uuid, peek(payload)))


def retry_failed(settings: Settings, uuid: UUID) -> bool:
    """Retry a failed direct job, due now; False when it is not among the failed."""
    with _broker(settings) as broker:
        return broker.retry_failed([uuid]) == 1


def error_groups(settings: Settings, only: Filter) -> list[ErrorGroup]:
    """Return the failed direct jobs by what their errors share, the most frequent first."""
    groups: dict[str, list[FailedDirectJob]] = {}
    with _broker(settings) as broker:
        for failed in FailedDirectJobs(broker):
            if _fits(failed, only):
                groups.setdefault(error_group(failed.error), []).append(failed)
    found = []
    for shared, members in groups.items():
        counts = Counter(one.job.action for one in members if one.job is not None)
        names = sorted(counts, key=lambda name: (-counts[name], name))[:MOST_ACTIONS]
        newest = max(members, key=lambda one: one.at_ms)
        at = datetime.fromtimestamp(newest.at_ms / 1000, UTC)
        found.append(ErrorGroup(shared, len(members), tuple(names), newest.uuid, newest.error, at))
    return sorted(found, key=lambda group: (-group.count, group.error_group))


def change_failed(settings: Settings, only: Filter, *, again: bool) -> Iterator[int]:
    """Retry the failed direct jobs that fit, or forget them; give how many it were after each lot."""
    with _broker(settings) as broker:
        # All are read before the first is changed: one that dies again meanwhile is left.
        uuids = [one.uuid for one in FailedDirectJobs(broker) if _fits(one, only)]
        for at in range(0, len(uuids), LOT):
            lot = uuids[at : at + LOT]
            yield broker.retry_failed(lot) if again else broker.delete_failed(lot)


@contextmanager
def _broker(settings: Settings) -> Iterator[RedisBroker]:
    with closing(build_broker(settings)) as broker:
        broker.generation()
        yield broker


def _publication(uuid: UUID, job: Job) -> Publication:
    return Publication(
        direct_reference(uuid, job.action, job.key, group=job.group, limit=job.limit).pack(),
        lane(NO_TAG8, job.queue),
        0 if job.run_at is None else to_ms(job.run_at),
        priority=job.priority,
    )


def _fits(failed: FailedDirectJob, only: Filter) -> bool:
    job = failed.job
    return (
        (only.error_group is None or error_group(failed.error) == only.error_group)
        and (only.queue is None or failed.queue == only.queue)
        and (only.action is None or (job is not None and job.action == only.action))
        and (only.group is None or (job is not None and job.group == only.group))
    )
