"""Promise 8: Redis stopped, frozen, behind a black hole or unresolvable costs a user 200 ms, once per process."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from sidestream import Jobs, Settings
from sidestream.store import schema
from tests.support.servers import PostgresServer, RedisServer

ONCE = 0.2
"""Most seconds that the first commit may take longer."""
LATER = 0.005
"""Most seconds that each following one may take longer."""
MACHINE = 0.03
"""Seconds for which a busy machine may leave any process waiting; they are not the queue's."""
COMMITS = 40
ROUNDS = 3
"""Processes, each played by a client of its own: what the queue costs, it costs in every one of them, what the machine
costs, in one or two."""


@contextmanager
def stopped() -> Iterator[str]:
    """Nobody listens on the port."""
    with RedisServer() as server:
        url = server.tcp_url
        server.stop()
        yield url


@contextmanager
def frozen() -> Iterator[str]:
    """The kernel accepts the connection, the server never answers."""
    with RedisServer() as server:
        server.freeze()
        yield server.tcp_url


@contextmanager
def frozen_later() -> Iterator[str]:
    """As frozen, over the unix socket."""
    with RedisServer() as server:
        server.freeze()
        yield server.url


@contextmanager
def black_hole() -> Iterator[str]:
    """A port whose queue of connections is full: packets to it are dropped, as a firewall drops them."""
    with ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(hole.getsockname())
        yield f"redis://127.0.0.1:{hole.getsockname()[1]}/0"


@contextmanager
def unresolvable() -> Iterator[str]:
    """A name that no server knows (RFC 2606 reserves .invalid)."""
    yield "redis://queue.sidestream.invalid:6379/0"


@contextmanager
def mute_resolver() -> Iterator[str]:
    """The name server never answers; getaddrinfo knows no time-out."""
    answered = threading.Event()
    real = socket.getaddrinfo

    def wait_and_ask(host: str, *rest: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            answered.wait(30)
        return real(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", wait_and_ask)
        yield "redis://queue.sidestream.invalid:6379/0"
        answered.set()


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """A database with the schema, on a server that does not wait for its disk."""
    with PostgresServer(fsync=False) as server:
        dsn = server.create_database("shop")
        with psycopg.connect(dsn) as connection:
            schema.install(connection.cursor())
        yield dsn


@pytest.mark.parametrize("outage", [stopped, frozen, frozen_later, black_hole, unresolvable, mute_resolver])
def test_a_request_waits_200_ms_once_and_then_not_at_all(dsn: str, outage: Callable[[], Iterator[str]]) -> None:
    with outage() as url, psycopg.connect(dsn) as connection:  # type: ignore[attr-defined]
        before = _rows(connection)
        settings = Settings(database_url=dsn, redis_url=url)
        clients = [Jobs(settings) for _ in range(ROUNDS)]
        rounds = [_round(jobs, connection) for jobs in clients]
        closing = [threading.Thread(target=jobs.close) for jobs in clients]
        for thread in closing:
            thread.start()
        _judge(outage.__name__, rounds)
        for thread in closing:
            thread.join()
        assert _rows(connection) == before + ROUNDS * 2 * (COMMITS + 1)


@pytest.mark.parametrize("address", ["url", "tcp_url"])
@pytest.mark.parametrize("how", ["freeze", "stop"])
def test_a_redis_that_goes_away_while_it_is_used_costs_no_more(dsn: str, how: str, address: str) -> None:
    with RedisServer() as server, psycopg.connect(dsn) as connection:
        settings = Settings(database_url=dsn, redis_url=getattr(server, address))
        rounds = []
        for _ in range(ROUNDS):
            server.mend()
            with Jobs(settings) as jobs:
                for _ in range(COMMITS):
                    _commit(jobs, connection)
                relay = jobs._relay
                _until(lambda relay=relay: not relay.kept and not relay.broken, "all is published")
                getattr(server, how)()  # while the connection is open
                rounds.append(_round(jobs, connection))
                # While the thread asks the server, what it asks with is in its hands.
                _until(lambda relay=relay: relay.kept > COMMITS - 1, "what was committed is kept")
        _judge(f"{how} {address}", rounds)


def _round(jobs: Jobs, connection: psycopg.Connection[tuple[object, ...]]) -> tuple[float, float, float]:
    """Return how much longer the first commit took, the median of the following ones, and the worst of them.

    Longer than commits without the queue: the median and the worst of as many, made in between.
    """
    pairs = [(_commit(jobs, connection), _commit_alone(jobs, connection)) for _ in range(COMMITS + 1)]
    (first, *later), (_, *plain) = zip(*pairs, strict=True)
    usual = statistics.median(plain)
    return first - usual, statistics.median(later) - usual, max(later) - max(plain)


def _judge(what: str, rounds: list[tuple[float, float, float]]) -> None:
    """Say and check what the commits of each round took longer."""
    firsts, medians, worst = zip(*rounds, strict=True)
    for name, costs in (("first", firsts), ("then p50", medians), ("then most", worst)):
        print(f"{what}: {name}", ", ".join(f"{cost * 1e3:.2f}" for cost in costs), "ms more than the commit")
    assert min(firsts) < ONCE + MACHINE
    assert min(medians) < LATER
    assert min(worst) < LATER + MACHINE


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.005)


def _rows(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    return int(connection.execute("SELECT count(*) FROM sidestream_job").fetchall()[0][0])


def _commit(jobs: Jobs, connection: psycopg.Connection[tuple[object, ...]]) -> float:
    """Enqueue one job as a request does; return the seconds that it took."""
    started = time.monotonic()
    with jobs.transaction(connection) as tx:
        tx.enqueue("mail.send", (1,))
    return time.monotonic() - started


def _commit_alone(jobs: Jobs, connection: psycopg.Connection[tuple[object, ...]]) -> float:
    """The same row and the same commit, and nothing else."""
    started = time.monotonic()
    jobs.enqueue("mail.send", (1,), connection=connection)
    connection.commit()
    return time.monotonic() - started
