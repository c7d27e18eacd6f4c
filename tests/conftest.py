"""Provide servers to all tests, started on first use, one set for each xdist worker."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_process import worker_user
from tests.support.servers import PostgresServer, RedisServer

os.environ.setdefault("SIDESTREAM_USER", worker_user())  # for the commands that tests start
_numbers = itertools.count(1)
_emptied: list[str] = []
"""Databases that a test has used and that were emptied again."""

_WAITING = Path(__file__).parent / "acceptance"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every xdist worker begin with files of tests that mostly wait, and end with the many short ones.

    ``--dist worksteal`` gives each worker an equal part of the list, whose end is what others take over.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    waiting = [item for item in items if _WAITING in item.path.parents]
    short = iter([item for item in items if _WAITING not in item.path.parents])
    files = [list(tests) for _, tests in itertools.groupby(waiting, key=lambda item: item.path)]
    part = len(items) // workers
    dealt: list[pytest.Item] = []
    for worker in range(workers):
        begun = list(itertools.chain.from_iterable(files[worker::workers]))
        dealt += [*begun, *itertools.islice(short, max(0, part - len(begun)))]
    items[:] = [*dealt, *short]


@pytest.fixture(scope="session")
def postgres_process() -> Iterator[PostgresServer]:
    """The PostgreSQL of this test process; tests use :func:`postgres`, which repairs it."""
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture
def postgres(postgres_process: PostgresServer) -> Iterator[PostgresServer]:
    """A running PostgreSQL; a test may stop, kill or freeze it."""
    postgres_process.start()
    yield postgres_process
    postgres_process.mend()


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database that only this test uses."""
    if not _emptied:
        _emptied.append(f"test_{next(_numbers)}")
        postgres.create_database(_emptied[-1])
    name = _emptied.pop()
    yield postgres.dsn(name)
    postgres.mend()
    postgres.empty_database(name)
    _emptied.append(name)


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """The Valkey of this test process; tests use :func:`redis_server`, which empties it first."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer) -> Iterator[RedisServer]:
    """An empty, running Valkey; a test may stop, kill or freeze it."""
    redis_process.start()
    redis_process.flushall()
    yield redis_process
    redis_process.mend()
