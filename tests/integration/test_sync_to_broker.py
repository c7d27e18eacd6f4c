"""Changes to many rows are synchronized to Redis over one connection to each server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis

from sidestream import Settings, sync_to_broker
from sidestream.broker.protocol import Place, Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.job import Job
from sidestream.job.rules import Rules
from sidestream.store import adapter, control, schema
from sidestream.store.insert import insert
from sidestream.wiring.client import build_broker
from tests.support.servers import RedisServer

JOBS = 150


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note every connection to PostgreSQL that is opened."""
    acquired: list[str] = []
    connect = adapter.connect

    def counted(dsn: str, application_name: str, **options: Any) -> psycopg.Connection[Any]:
        acquired.append(application_name)
        return connect(dsn, application_name, **options)

    monkeypatch.setattr(adapter, "connect", counted)
    return acquired


@pytest.mark.parametrize("waiting", [True, False], ids=["run now", "cancel"])
def test_many_jobs_take_one_connection_to_each_server(
    settings: Settings, redis_server: RedisServer, connected: list[str], waiting: bool
) -> None:
    assert settings.database_url is not None
    with psycopg.connect(settings.database_url, autocommit=True) as connection, connection.cursor() as cursor:
        database = schema.identify(cursor)
        stored = insert(cursor, [Job("act", run_at=datetime.now(UTC) + timedelta(minutes=10)) for _ in range(JOBS)])
        broker = build_broker(settings)
        published = [Publication(job.reference(database), lane(database.tag, "default"), job.due_ms) for job in stored]
        begin(broker, database.tag)
        broker.publish(published)
        for job in stored:
            written = control.run_now(cursor, job.id) if waiting else control.cancel(cursor, job.id)
            assert written.applied
    with redis_server.client() as client:
        before = connections(client)
        assert sync_to_broker(settings, [job.id for job in stored], waiting=waiting)
        assert connections(client) - before == 1
    assert len(connected) == 1
    assert broker.locate(published) == [Place.READY if waiting else Place.NOWHERE] * JOBS
    broker.close()


def begin(broker: RedisBroker, database: bytes) -> None:
    broker.begin_generation()
    broker.configure(database, Rules())
    broker.mark_synced(database)


def connections(client: redis.Redis) -> int:
    told: dict[str, Any] = client.info("stats")
    return int(told["total_connections_received"])
