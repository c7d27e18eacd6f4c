"""One database with our tables for this folder, emptied before each test, and sessions over both drivers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sidestream.store import schema
from tests.integration.store.sessions import DRIVERS, Session
from tests.support.servers import PostgresServer

Connect = Callable[..., Session]


@pytest.fixture(params=list(DRIVERS))
def driver(request: pytest.FixtureRequest) -> str:
    """Every test that asks for it, or for a session, runs over psycopg 3 and over psycopg2."""
    return str(request.param)


@pytest.fixture(scope="session")
def store_name(postgres_process: PostgresServer) -> str:
    postgres_process.create_database("store")
    session = Session("psycopg", postgres_process.dsn("store"))
    schema.install(session.cur)
    session.close()
    return "store"


@pytest.fixture
def store_dsn(postgres: PostgresServer, store_name: str) -> str:
    """The URL of a database with our tables, empty."""
    dsn = postgres.dsn(store_name)
    session = Session("psycopg", dsn)
    session.execute(
        "TRUNCATE sidestream_job, sidestream_job_record, sidestream_attempt, sidestream_control, sidestream_rule "
        "RESTART IDENTITY"
    )
    session.close()
    return dsn


@pytest.fixture
def connect(driver: str, store_dsn: str) -> Iterator[Connect]:
    """Open sessions on the store; they are closed at the end."""
    acquired: list[Session] = []

    def make(**options: str) -> Session:
        acquired.append(Session(driver, store_dsn, **options))
        return acquired[-1]

    yield make
    for session in acquired:
        session.close()


@pytest.fixture
def fresh(driver: str, database: str) -> Iterator[Connect]:
    """Open sessions on a database without our tables; they are closed at the end."""
    acquired: list[Session] = []

    def make(**options: str) -> Session:
        acquired.append(Session(driver, database, **options))
        return acquired[-1]

    yield make
    for session in acquired:
        session.close()


@pytest.fixture
def a(connect: Connect) -> Session:
    """A session."""
    return connect()


@pytest.fixture
def b(connect: Connect) -> Session:
    """Another session."""
    return connect()
