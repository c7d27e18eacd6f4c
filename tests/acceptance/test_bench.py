"""``sidestream bench`` measures on the user's servers and leaves them as they were."""

from __future__ import annotations

import signal

import psycopg
import pytest

from sidestream.testing.servers import RedisServer
from tests.acceptance.conftest import Run, answer, refused

FEW = ("bench", "--jobs", "50", "--children", "1")


def test_it_measures_and_leaves_nothing_behind(ready: Run, redis_server: RedisServer, database: str) -> None:
    with redis_server.client() as client:
        client.set("somebody's", "else")
        figures = answer(ready(*FEW, "--json"))["figures"]
        assert client.keys() == [b"somebody's"]
    assert [one["what"] for one in figures] == [
        "round trip to Redis",
        "round trip to PostgreSQL",
        "commit in PostgreSQL, written to disk",
        "enqueue 1 job in a transaction, without its commit",
        "enqueue 1,000 jobs in one call, without their commit",
        "enqueue 1 direct job",
        "idle, enqueue to start of a direct job",
        "50 empty direct jobs, 1 children",
    ]
    assert all(one["value"] > 0 for one in figures)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM sidestream_job").fetchone() == (0,)


def test_without_a_database_redis_alone_is_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTREAM_DATABASE_URL")
    done = run(*FEW)
    assert done.returncode == 0, done.stderr
    assert "round trip to Redis" in done.stdout
    assert "PostgreSQL is left out" in done.stdout


def test_it_refuses_in_one_sentence(ready: Run, redis_server: RedisServer, database: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    refused(ready("--redis-url", "redis://127.0.0.1:1", *FEW), 3, "cannot be reached")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE sidestream_meta CASCADE")
    refused(ready(*FEW), 3, "init-db")
    with redis_server.client() as client:
        assert client.keys() == []
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_user_who_may_not_erase_is_refused_before_anything_is_written(
    run: Run, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIDESTREAM_DATABASE_URL")
    with redis_server.client() as client:
        client.acl_setuser(
            "narrow", enabled=True, passwords=["+s"], keys=["*"], categories=["+@all"], commands=["-scan"]
        )
        url = redis_server.tcp_url.replace("redis://", "redis://narrow:s@")
        refused(run("--redis-url", url, *FEW), 3, "does not allow")
        assert client.keys() == []
        client.acl_deluser("narrow")
