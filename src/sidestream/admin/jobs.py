"""What a person may request for jobs that have a row, and who serves them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress

from sidestream.admin.diagnosis import Diagnosis, diagnose
from sidestream.broker.protocol import Broker, Explanation, Place, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.inspect import AnnouncedWorker, RedisInspector
from sidestream.errors import BrokerError, StoreError
from sidestream.relay.publications import publication_of
from sidestream.relay.queue import CHUNK_SIZE
from sidestream.settings import Settings
from sidestream.store import deaths, diagnosis, job_row, rules, schema
from sidestream.wiring.client import build_broker, store_cursor, store_url


def sync_to_broker(settings: Settings, job_ids: Sequence[int], *, waiting: bool) -> bool:
    """Synchronize rows that a person changed to Redis at once; return whether Redis answered.

    Their old references are taken from where they wait; when ``waiting``, the jobs are published as their rows now
    stand. One connection to each server, however many rows these are. Not needed for any promise: a worker that meets
    an old reference looks at the row, and the reconciler looks too.
    """
    with store_cursor(settings) as cursor:
        database, found = schema.identify(cursor), job_row.find_all(cursor, job_ids)
    publications = [publication_of(row, database) for row in found]

    def tell(broker: Broker) -> None:
        for publication in publications:
            broker.discard(publication)
        if waiting:
            for at in range(0, len(publications), CHUNK_SIZE):
                broker.publish(publications[at : at + CHUNK_SIZE])

    return _tell(settings, tell)


def reprioritize(settings: Settings, job_id: int) -> bool:
    """Give a waiting job the priority of its row in Redis; return whether Redis answered."""
    with store_cursor(settings) as cursor:
        database, found = schema.identify(cursor), job_row.find_all(cursor, [job_id])
    publications = [publication_of(row, database) for row in found]
    return _tell(settings, lambda broker: [broker.reprioritize(one, one.priority) for one in publications])


def why_waiting(settings: Settings, job_id: int) -> Diagnosis | None:
    """Return why a row's job waits or how it ended; None when there is no such row."""
    with store_cursor(settings) as cursor:
        database, facts, entries = schema.identify(cursor), diagnosis.diagnose(cursor, job_id), rules.entries(cursor)
    if facts is None:
        return None
    explanation, serving, busy = None, None, None
    try:
        with closing(build_broker(settings)) as broker:
            begun = broker.generation().number  # a Redis that no worker has met yet has none, and answers
            explanation = broker.explain(publication_of(facts.job, database)) if begun else Explanation(Place.NOWHERE)
            found = live_workers(settings, broker)
        serving = served_queues(found, lane(database.tag, ""))
        wanted = lane(database.tag, facts.job.queue)
        busy = _busy([one for one in found if wanted in one.lanes])
    except BrokerError:
        explanation = None  # the diagnosis says that it is away
    return diagnose(facts, entries, explanation, serving, busy)


def _busy(announced: Sequence[AnnouncedWorker]) -> tuple[int, int] | None:
    """Return how many children of the workers that announced this run a job, and how many there are; None: unknown."""
    try:
        running, children = (sum(int(one.info[name]) for one in announced) for name in ("running", "children"))
    except (ValueError, TypeError, KeyError):
        return None  # a worker of another release
    return (min(running, children), children) if children else None


def announced_workers(settings: Settings, broker: RedisBroker) -> Sequence[AnnouncedWorker]:
    """Return the workers that Redis knows; those that PostgreSQL knows to be dead have expired.

    A worker of this database holds a lock there, which ends with its process.
    """
    found = RedisInspector(broker.connection).workers()
    if found and store_url(settings) is not None:
        with suppress(StoreError), store_cursor(settings) as cursor:  # else Redis alone tells
            own = lane(schema.identify(cursor, allow_copy=True).tag, "")
            mine = {one.worker for one in found if any(name.startswith(own) for name in one.lanes)}
            dead = mine - deaths.living(cursor, mine)
            found = tuple(one._replace(until_ms=0) if one.worker in dead else one for one in found)
    return found


def live_workers(settings: Settings, broker: RedisBroker) -> list[AnnouncedWorker]:
    """Return the announced workers that live."""
    now_ms = time.time() * 1000
    return [one for one in announced_workers(settings, broker) if one.until_ms > now_ms]


def served_queues(workers: Iterable[AnnouncedWorker], own: str) -> list[list[str]]:
    """Return for each worker the queues whose lanes begin with ``own``."""
    return [[name.removeprefix(own) for name in one.lanes if name.startswith(own)] for one in workers]


def _tell(settings: Settings, tell: Callable[[Broker], object]) -> bool:
    try:
        with closing(build_broker(settings)) as broker:
            if not broker.generation().number:
                return False  # emptied: the reconciler builds it anew
            tell(broker)
    except BrokerError:
        return False
    return True
