"""The one file that picks concrete parts from the settings. It decides nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg.conninfo import make_conninfo

from sidestream import wiring_folder
from sidestream.broker.protocol import Broker, Explanation, Place, Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.inspect import RedisInspector
from sidestream.broker.redis.keys import PREFIX
from sidestream.broker.why import why
from sidestream.client import Client
from sidestream.errors import BrokerError, SettingsError
from sidestream.executors.actions import Actions
from sidestream.job.codec import Signer
from sidestream.odoo_config import database_parameters
from sidestream.relay import Relay
from sidestream.relay_queue import CHUNK_SIZE
from sidestream.settings import Settings
from sidestream.store import adapter, rules, schema, stored, waiting
from sidestream.store.stored import StoredJob
from sidestream.wiring_folder import signing_keys


class Jobs(Client):
    """Enqueues jobs with the parts that the settings name.

    Make one per process. Nothing is connected or started before the first job; a forked child goes on by itself.
    """

    @classmethod
    def reading(cls, read: Callable[[], Settings]) -> Self:
        """Return Jobs whose settings are read where nobody waits for them, and again as long as they are wrong.

        For an application whose users must not see what is wrong with them: jobs are rows, and workers find those.
        """
        jobs = cls.__new__(cls)
        Client.__init__(jobs, Relay(lambda: build_broker(read())), lambda: Signer(signing_keys(read())))
        return jobs

    def __init__(self, settings: Settings | None = None, *, actions: Actions | None = None) -> None:
        """Take ``settings`` (None: from environment and settings file) and, to have names checked, ``actions``."""
        chosen = settings or Settings()
        super().__init__(
            Relay(lambda: build_broker(chosen), wait=chosen.relay_wait),
            lambda: Signer(signing_keys(chosen)),
            actions=actions,
            direct_timeout=chosen.redis_timeout,
        )


def build_broker(settings: Settings, *, prefix: str = PREFIX) -> RedisBroker:
    """Return the Redis broker, its server started if it is the embedded one, and found fit for use.

    ``prefix``: what its keys begin with; another one than the default only for a trial.

    Raises :class:`~sidestream.errors.BrokerUnavailable`, :class:`~sidestream.errors.BrokerUnsuitable` and
    :class:`~sidestream.errors.SettingsError`.
    """
    url = settings.redis_url or wiring_folder.server_url(settings)
    broker = RedisBroker(url, timeout=settings.redis_timeout, lease_ms=round(settings.lease * 1000), prefix=prefix)
    try:
        broker.probe()
    except BaseException:
        broker.close()
        raise
    return broker


def store_url(settings: Settings) -> str | None:
    """Return the URL of the store's database: the one given, else where Odoo's configuration says; None: neither."""
    if settings.database_url is not None or settings.odoo_config is None or settings.odoo_database is None:
        return settings.database_url
    return make_conninfo(**database_parameters(settings.odoo_config, settings.odoo_database))


@contextmanager
def store_connection(settings: Settings, name: str = "sidestream/cli") -> Iterator[psycopg.Connection[Any]]:
    """Connect to the store's database under the application name ``name``, and close when the block ends."""
    url = store_url(settings)
    if url is None:
        raise SettingsError(
            "No database is named; give --database-url or set SIDESTREAM_DATABASE_URL, for example postgresql:///shop."
        )
    connection: psycopg.Connection[Any] = adapter.connect(url, name, autocommit=False)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def store_cursor(settings: Settings) -> Iterator[psycopg.Cursor[Any]]:
    """A cursor on such a connection, in a transaction that is committed when the block ends well."""
    with store_connection(settings) as connection:
        try:
            with connection.cursor() as cursor:
                yield cursor
            connection.commit()
        except psycopg.Error as error:
            raise adapter.translate(error, "asked by the command line") from error


def hasten(settings: Settings, job_ids: Sequence[int], *, waiting: bool) -> bool:
    """Make Redis follow at once what a person did to rows, and return whether it could be told.

    Their old references are taken from where they wait; when ``waiting``, the jobs are published as their rows now
    stand. One connection to each server, however many rows these are. Not needed for any promise: a worker that meets
    an old reference looks at the row, and the reconciler looks too.
    """
    with store_cursor(settings) as cursor:
        database, found = schema.identify(cursor), stored.find_all(cursor, job_ids)
    return _hasten(settings, database, found, waiting=waiting)


def hasten_all(settings: Settings, jobs: Sequence[StoredJob], *, waiting: bool) -> bool:
    """Do as :func:`hasten` for rows that were read after the change."""
    with store_cursor(settings) as cursor:
        database = schema.identify(cursor)
    return _hasten(settings, database, jobs, waiting=waiting)


def reprioritize(settings: Settings, job_id: int) -> bool:
    """Let a waiting job have the priority that its row has now, and return whether Redis could be told."""
    with store_cursor(settings) as cursor:
        database, found = schema.identify(cursor), stored.find_all(cursor, [job_id])
    publications = [_publication(database, row) for row in found]
    return _tell(settings, lambda broker: [broker.move(one, one.priority) for one in publications])


def why_waiting(settings: Settings, job_id: int) -> str | None:
    """Return the sentence that says why a row's job waits or how it ended; None when there is no such row."""
    with store_cursor(settings) as cursor:
        database, facts, entries = schema.identify(cursor), waiting.facts(cursor, job_id), rules.entries(cursor)
    if facts is None:
        return None
    explanation, serving, busy = None, None, None
    try:
        broker = build_broker(settings)
        try:
            begun = broker.generation().number  # a Redis that no worker has met yet has none, and answers
            explanation = broker.explain(_publication(database, facts.job)) if begun else Explanation(Place.NOWHERE)
            found = RedisInspector(broker.connection).workers()
        finally:
            broker.close()
        now_ms, own = time.time() * 1000, f"{database.tag.hex()}:"
        serving = [
            [name.removeprefix(own) for name in worker.lanes if name.startswith(own)]
            for worker in found
            if worker.until_ms > now_ms
        ]
        wanted = lane(database.tag, facts.job.queue)
        busy = _busy([one.info for one in found if one.until_ms > now_ms and wanted in one.lanes])
    except BrokerError:
        explanation = None  # the sentence says that it is away
    return why(facts, entries, explanation, serving, busy)


def _busy(announced: Sequence[str]) -> tuple[int, int] | None:
    """Return how many children of the workers that announced this run a job, and how many there are; None: unknown."""
    running, children = 0, 0
    for info in announced:
        try:
            told = json.loads(info)
            running, children = running + int(told["running"]), children + int(told["children"])
        except (ValueError, TypeError, KeyError):
            return None  # a worker of another release
    return (min(running, children), children) if children else None


def announced_workers(settings: Settings) -> Sequence[tuple[str, tuple[str, ...], str, int]]:
    """Return (name, lanes, info as JSON, Unix milliseconds until which it holds) of each worker that Redis knows."""
    broker = build_broker(settings)
    try:
        found = RedisInspector(broker.connection).workers()
        return [(one.consumer, one.lanes, one.info, one.until_ms) for one in found]
    finally:
        broker.close()


def _hasten(settings: Settings, database: schema.Database, jobs: Sequence[StoredJob], *, waiting: bool) -> bool:
    publications = [_publication(database, row) for row in jobs]

    def tell(broker: Broker) -> None:
        for publication in publications:
            broker.discard(publication)
        if waiting:
            for at in range(0, len(publications), CHUNK_SIZE):
                broker.publish(publications[at : at + CHUNK_SIZE])

    return _tell(settings, tell)


def _tell(settings: Settings, tell: Callable[[Broker], object]) -> bool:
    try:
        broker = build_broker(settings)
        try:
            if not broker.generation().number:
                return False  # emptied: the reconciler builds it anew
            tell(broker)
        finally:
            broker.close()
    except BrokerError:
        return False
    return True


def _publication(database: schema.Database, row: StoredJob) -> Publication:
    return Publication(
        row.reference(database),
        lane(database.tag, row.queue),
        row.due_ms,
        attempted=row.attempted,
        priority=row.priority,
    )
