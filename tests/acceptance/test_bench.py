"""``sidestream bench`` on shared servers: its output, its refusals, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from sidestream import Jobs
from sidestream.bench import scratch_shard as shard
from sidestream.bench import scratch_tables
from sidestream.settings import Settings
from sidestream.store import schema
from sidestream.store.locks import lock_tag
from tests.acceptance.conftest import Finished, answer, refused
from tests.support.servers import RedisServer

SIDESTREAM = str(Path(sys.executable).with_name("sidestream"))
QUICK = ("bench", "--jobs", "100", "--json")
MARK = "BENCH_OF_TEST"
"""Environment variable by which a test tells its own bench's processes from those of tests beside it."""

Bench = Callable[..., Finished]
State = Callable[[], object]


@pytest.fixture
def environment(database: str, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDESTREAM_")}
    return kept | {
        "SIDESTREAM_USER": os.environ["SIDESTREAM_USER"],
        "SIDESTREAM_DATABASE_URL": database,
        "SIDESTREAM_REDIS_URL": redis_server.url,
        "SIDESTREAM_DATA_DIR": str(tmp_path / "data"),
        MARK: str(tmp_path),
    }


@pytest.fixture
def bench(environment: dict[str, str], tmp_path: Path) -> Bench:
    """Run the command in a process of its own, as it runs its worker."""

    def call(*words: str, **changed: str) -> Finished:
        done = subprocess.run(
            [SIDESTREAM, *words], env=environment | changed, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def client(redis_server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(redis_server.url)


@pytest.fixture
def state(database: str, client: redis.Redis) -> State:
    """What the servers hold: every key with its bytes, every library, every table with its rows."""
    client.function_flush()

    def look() -> object:
        keys: Any = client.keys("*")
        libraries: Any = client.function_list()
        with psycopg.connect(database) as connection:
            tables = connection.execute(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname !~ '^(pg_|information_schema)' ORDER BY 1, 2"
            ).fetchall()
            schemas = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'").fetchall()
            installed = schema.installed(connection.cursor())
            rows = connection.execute("SELECT * FROM sidestream_job").fetchall() if installed else []
        return {key: client.dump(key) for key in keys}, libraries, tables, schemas, rows

    return look


@pytest.fixture
def left_running(tmp_path: Path) -> Callable[[], list[str]]:
    """Which processes of this test's benches there are."""

    def look() -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            ours = (process.info["environ"] or {}).get(MARK) == str(tmp_path)
            if ours and any("bench.run" in word for word in process.info["cmdline"] or []):
                found.append(" ".join(process.info["cmdline"]))
        return found

    return look


def what(done: Finished) -> dict[str, dict[str, Any]]:
    told = answer(done)
    assert set(told) == {"benchmark", "servers", "rows", "seconds"}
    assert "append-only" in told["servers"]["redis"]
    return {row["what"]: row for row in told["rows"]}


def test_it_measures_the_engine_on_servers_of_others_and_leaves_them_as_they_were(
    bench: Bench,
    state: State,
    client: redis.Redis,
    database: str,
    redis_server: RedisServer,
    left_running: Callable[[], list[str]],
) -> None:
    with psycopg.connect(database) as connection:
        schema.install(connection.cursor())
        connection.execute("CREATE TABLE business (of_the_user text)")
    client.set("theirs", "a session")
    with (
        Jobs(Settings(redis_url=redis_server.url)) as jobs,
        psycopg.connect(database) as connection,
        jobs.transaction(connection) as tx,
    ):
        tx.enqueue("theirs", delay=3600)
    before = state()
    rows = what(bench(*QUICK))
    assert state() == before
    assert not left_running()
    assert {row["unit"] for row in rows.values()} == {"ms", "jobs/s"}
    assert all(row["value"] > 0 for row in rows.values())
    for measured in (
        "round trip to Redis",
        "round trip to PostgreSQL",
        "enqueue a direct job",
        "enqueue a row: the call itself",
        "empty direct jobs",
        "jobs in a transaction each",
        "enqueue to start, idle: direct job",
        "enqueue to start, idle: row",
    ):
        assert measured in rows
    assert rows["empty direct jobs"]["note"] == "100 jobs, 2 children"


def test_it_does_not_begin_while_real_jobs_wait_unless_told_to(
    bench: Bench, state: State, redis_server: RedisServer, tmp_path: Path, left_running: Callable[[], list[str]]
) -> None:
    with Jobs(Settings(redis_url=redis_server.url, data_dir=tmp_path / "client", user=None)) as jobs:
        jobs.enqueue_direct("theirs")
    before = state()
    refused(bench(*QUICK), 1, "1 jobs are ready and 0 are leased to workers; run it when they are done, or with")
    assert state() == before
    done = bench(*QUICK[:3], "--anyway", "--children", "1", SIDESTREAM_DATABASE_URL="none")
    assert done.returncode == 0, done.stderr
    assert "No job ran twice" in done.stdout
    assert "100 jobs, 1 children" in done.stdout
    assert "PostgreSQL" not in done.stdout  # without a database Redis alone is measured
    assert state() == before
    assert not left_running()


def test_two_do_not_measure_each_other(bench: Bench, state: State, client: redis.Redis, database: str) -> None:
    client.set(f"{shard.PREFIX}running", "another's")
    before = state()
    refused(bench(*QUICK), 1, "Another benchmark is using Redis")
    assert state() == before
    client.delete(f"{shard.PREFIX}running")
    with psycopg.connect(database) as connection:
        assert lock_tag(connection.cursor(), scratch_tables._LOCK)
        refused(bench(*QUICK), 1, "Another benchmark is using the database")
    assert not client.keys("*")


def test_what_a_killed_bench_left_goes_with_the_next_one(
    bench: Bench, state: State, client: redis.Redis, database: str
) -> None:
    before = state()
    client.hset(f"{shard.PREFIX}direct", "old", "old")
    with psycopg.connect(database, autocommit=True) as connection:
        scratch_tables.create(connection.cursor())
    assert what(bench(*QUICK))
    assert state() == before


def test_a_schema_of_that_name_that_is_not_ours_stays(bench: Bench, state: State, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE SCHEMA sidestream_bench CREATE TABLE precious (number int)")
    before = state()
    refused(bench(*QUICK), 1, "has a schema 'sidestream_bench' that the benchmark did not create")
    assert state() == before


def test_a_role_that_may_not_make_a_schema_is_told_what_to_grant(bench: Bench, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE ROLE narrow LOGIN")
    try:
        done = bench("--database-url", database.replace("postgres@", "narrow@"), *QUICK)
        refused(done, 1, "GRANT CREATE ON DATABASE")
    finally:
        with psycopg.connect(database) as connection:
            connection.execute("DROP ROLE narrow")


def test_a_redis_that_is_nearly_full_keeps_its_room(bench: Bench, state: State, client: redis.Redis) -> None:
    client.config_set("maxmemory", "32mb")
    try:
        before = state()
        refused(bench(*QUICK), 1, "MiB free below its maxmemory")
        assert state() == before
    finally:
        client.config_set("maxmemory", "0")


def test_servers_that_are_away_or_unsuitable_are_code_3(bench: Bench, client: redis.Redis) -> None:
    refused(bench("--redis-url", "redis://127.0.0.1:1", *QUICK), 3, "cannot be reached")
    refused(bench("--database-url", "postgresql://127.0.0.1:1/none", *QUICK), 3, "PostgreSQL")
    assert not client.keys("*")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        refused(bench(*QUICK), 3, "allkeys-lru")
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_a_user_who_may_not_remove_keys_is_refused_before_he_leaves_some(
    bench: Bench, state: State, client: redis.Redis, redis_server: RedisServer
) -> None:
    for missing in ("-scan", "-unlink"):
        client.acl_setuser(
            "narrow", enabled=True, passwords=["+s"], keys=["*"], categories=["+@all"], commands=[missing]
        )
        url = redis_server.tcp_url.replace("redis://", "redis://narrow:s@")
        before = state()
        refused(bench("--redis-url", url, *QUICK), 3, "does not allow what Sidestream needs")
        assert state() == before
        client.acl_deluser("narrow")


def test_a_number_of_jobs_that_says_nothing_is_code_2(bench: Bench) -> None:
    done = bench("bench", "--jobs", "5")
    assert done.returncode == 2
    assert "100" in done.stderr


def begun(environment: dict[str, str], folder: Path, client: redis.Redis) -> subprocess.Popen[bytes]:
    """Start a long bench and return it when its worker runs jobs."""
    with (folder / "said").open("w") as said:
        running = subprocess.Popen(
            [SIDESTREAM, "bench", "--jobs", "2000"], env=environment, cwd=folder, stdout=said, stderr=said
        )
    until = time.monotonic() + 60
    while not client.zcard(f"{shard.PREFIX}workers"):
        assert running.poll() is None, (folder / "said").read_text()
        assert time.monotonic() < until, "no worker announced itself"
        time.sleep(0.02)
    return running


def test_stopped_it_cleans_up(
    environment: dict[str, str],
    tmp_path: Path,
    state: State,
    client: redis.Redis,
    left_running: Callable[[], list[str]],
) -> None:
    before = state()
    running = begun(environment, tmp_path, client)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 128 + signal.SIGTERM
    assert state() == before
    assert not left_running()


def test_killed_it_takes_its_worker_along(
    environment: dict[str, str], tmp_path: Path, client: redis.Redis, left_running: Callable[[], list[str]]
) -> None:
    running = begun(environment, tmp_path, client)
    assert left_running(), "nothing would be proven"
    running.kill()
    running.wait()
    until = time.monotonic() + 20
    while left_running():
        assert time.monotonic() < until, left_running()
        time.sleep(0.05)
