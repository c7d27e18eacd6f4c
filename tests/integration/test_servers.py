"""The test servers themselves: the state after a kill, a freeze and a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import psycopg
import pytest
import redis

from tests.support.servers import PostgresServer, RedisServer


def test_postgres_keeps_what_was_committed_through_a_kill(postgres: PostgresServer, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    family = psutil.Process(postgres.pid).children()
    postgres.kill()
    assert not postgres.alive
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    postgres.start()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


def test_a_frozen_postgres_answers_nothing_until_it_is_thawed(postgres: PostgresServer) -> None:
    postgres.freeze()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.dsn(), connect_timeout=2)
    postgres.thaw()
    psycopg.connect(postgres.dsn()).close()


def test_redis_keeps_its_port_and_its_append_only_file_through_a_restart() -> None:
    with RedisServer() as server:
        url = server.tcp_url
        server.client().set("a", 1)
        server.restart()
        assert server.tcp_url == url
        assert server.client().get("a") == b"1"
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            server.client(socket_timeout=0.05, retry=None).ping()
        server.thaw()
        folder = server.folder
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop to another user")
def test_root_runs_servers_as_another_user(redis_server: RedisServer, postgres: PostgresServer) -> None:
    assert psutil.Process(redis_server.pid).uids().effective != 0
    assert psutil.Process(postgres.pid).uids().effective != 0


def test_a_server_that_a_thread_started_outlives_the_thread() -> None:
    server = RedisServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert server.client().ping()
    finally:
        server.close()


def test_servers_die_with_the_process_that_started_them() -> None:
    code = (
        "from tests.support.servers import PostgresServer, RedisServer\n"
        "redis = RedisServer(); redis.start(); postgres = PostgresServer(fsync=False); postgres.start()\n"
        "print(redis.pid, postgres.pid, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        servers = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
        starter.send_signal(signal.SIGKILL)
    assert len(servers) == 2
    assert not psutil.wait_procs(servers, timeout=20)[1]
