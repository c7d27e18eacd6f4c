"""Provide a database with the tables, connections of both drivers, a client and a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest

from sidestream import Jobs, Settings, install
from sidestream.broker.protocol import Broker
from sidestream.job.reference import NO_TAG8
from sidestream.job.rules import Rules
from sidestream.wiring.client import build_broker
from tests.support.servers import RedisServer

SHORT_WAITS = {name: Settings.model_fields[name].default for name in ("publish_timeout", "redis_timeout")}


@pytest.fixture
def dsn(database: str) -> str:
    with psycopg.connect(database) as connection:
        install(connection.cursor())
        connection.execute("CREATE TABLE invoice (id int PRIMARY KEY)")
    return database


@pytest.fixture(params=["psycopg3", "psycopg2"])
def connection(request: pytest.FixtureRequest, dsn: str) -> Iterator[Any]:
    connect: Callable[[str], Any] = psycopg.connect if request.param == "psycopg3" else psycopg2.connect
    made = connect(dsn)
    yield made
    made.close()


@pytest.fixture
def settings(dsn: str, redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings with long timeouts for a busy machine; tests of timeouts use :data:`SHORT_WAITS`."""
    return Settings(
        database_url=dsn, redis_url=redis_server.url, data_dir=tmp_path, user=None, publish_timeout=10, redis_timeout=10
    )


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    with Jobs(settings) as made:
        yield made


@pytest.fixture
def broker(settings: Settings) -> Iterator[Broker]:
    made = build_broker(settings)
    if not made.generation().number:
        made.begin_generation()
    made.configure(NO_TAG8, Rules())
    yield made
    made.close()
