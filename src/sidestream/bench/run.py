"""Run ``sidestream bench`` on the user's own servers, and leave them as they were.

The benchmark uses a separate shard in Redis and a separate schema in PostgreSQL, so that real workers do not see its
jobs. Its worker is a real one in a separate process, with the settings of real workers.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from sidestream import process
from sidestream.bench import actions, scratch_tables
from sidestream.bench.ledger import Ledger
from sidestream.bench.measuring import Bench, Row, ledger_size, measure
from sidestream.bench.scratch_shard import PREFIX, ScratchShard
from sidestream.broker.redis.connection import RedisConnection
from sidestream.client import Client
from sidestream.errors import BenchRefused, SidestreamError
from sidestream.job.codec import Signer
from sidestream.logs import set_up_logging
from sidestream.relay.relay import Relay
from sidestream.settings import Settings
from sidestream.store import adapter
from sidestream.wiring.client import build_broker, store_url
from sidestream.wiring.data_folder import server_url, stop_server
from sidestream.wiring.worker import Worker

WORKER = "from sidestream.bench.run import run_worker; run_worker()"
APPLICATION_NAME = "sidestream/bench"
APPLICATION = "sidestream.bench.actions:actions"
STOP_TIMEOUT = 10.0
"""Seconds that the benchmark's worker has for stopping."""
_BUSY = "The benchmark did not start because {}; run it when they are done, or with --anyway."


class Measured(NamedTuple):
    """The result of a benchmark."""

    rows: list[Row]
    #: Version and durability of each server, as text.
    servers: dict[str, str]


def run_bench(settings: Settings, *, size: int, anyway: bool, say: Callable[[str], None]) -> Measured:
    """Run the benchmark on the servers of ``settings``, and leave these unchanged.

    Args:
        settings: The servers and the number of children.
        size: Number of direct jobs to drain.
        anyway: Run even while real jobs are ready or running.
        say: Receives the name of each stage.

    Raises:
        BenchRefused: It would disturb real jobs, or it could not measure.
        SidestreamError: A server cannot be used.
    """
    url = store_url(settings)
    with ExitStack() as stack:
        if settings.redis_url is None:
            stack.callback(stop_server, settings)
        redis_url = settings.redis_url or server_url(settings)
        connection = RedisConnection(redis_url, max(settings.redis_timeout, 5.0))
        stack.callback(connection.close)
        shard = ScratchShard(connection)
        busy = shard.busy()
        if busy is not None and not anyway:
            raise BenchRefused(_BUSY.format(busy))
        stack.callback(shard.release)
        shard.acquire()
        servers = {"redis": shard.describe()}
        rows = None
        if url is not None:
            servers["postgresql"], rows = stack.enter_context(_schema(url))
        folder = stack.enter_context(_folder())
        ledger = Ledger.create(folder / "ledger", ledger_size(size))
        key = secrets.token_hex(32)
        own = settings.model_copy(update={"redis_url": redis_url})
        jobs = Client(
            Relay(lambda: build_broker(own, prefix=PREFIX)),
            lambda: Signer([("bench", key.encode())]),
            actions=actions.actions,
        )
        stack.callback(jobs.close)
        orders = json.dumps(_worker_settings(settings, redis_url, url, key, folder))
        bench = Bench(
            jobs,
            ledger,
            lambda: _worker(orders, ledger, folder / "worker.log"),
            shard.ping,
            rows,
            size,
            settings.children,
        )
        return Measured(measure(bench, say), servers)


def run_worker() -> None:
    """Run the benchmark's worker, whose settings come as JSON on standard input."""
    parent = os.getppid()
    try:
        settings = Settings(**json.load(sys.stdin))
        set_up_logging(settings.log_level, settings.log_format)
        worker = Worker(settings, prefix=PREFIX)
        process.die_with_parent(parent)  # after the change of user, which resets it
        worker.run()
    except SidestreamError as error:
        sys.exit(str(error))


def _worker_settings(settings: Settings, redis_url: str, url: str | None, key: str, folder: Path) -> dict[str, object]:
    """Return the user's settings with the benchmark's application, servers and queue."""
    kept = settings.model_dump(mode="json", exclude={"signing_keys"})
    return kept | {
        "redis_url": redis_url,
        "database_url": None if url is None else scratch_tables.url_of(url),
        "odoo_config": None,
        "odoo_database": None,
        "app": APPLICATION,
        "queues": actions.QUEUE,
        "signing_keys": f"bench:{key}",
        "data_dir": str(folder / "worker"),
        "log_level": "warning",
        "log_format": "text",
    }


@contextmanager
def _schema(url: str) -> Iterator[tuple[str, psycopg.Connection[Any]]]:
    """Create the schema; yield the server's description and a connection that uses the schema."""
    owner: psycopg.Connection[Any] = adapter.connect(url, APPLICATION_NAME, autocommit=True)
    try:
        with closing(owner), owner.cursor() as cursor:
            scratch_tables.create(cursor)
            try:
                described = scratch_tables.describe(cursor)
                connection: psycopg.Connection[Any] = adapter.connect(
                    scratch_tables.url_of(url), APPLICATION_NAME, autocommit=False
                )
                with closing(connection):
                    yield described, connection
            finally:
                scratch_tables.drop(cursor)
    except psycopg.Error as error:
        raise adapter.translate(error, "running the benchmark") from error


@contextmanager
def _folder() -> Iterator[Path]:
    """Create a folder that the worker's user can enter, in memory if possible."""
    shared = Path("/dev/shm")  # noqa: S108  # a folder with a random name is made in it
    folder = Path(tempfile.mkdtemp(prefix="sidestream-bench-", dir=shared if os.access(shared, os.W_OK) else None))
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _worker(orders: str, ledger: Ledger, log: Path) -> Iterator[Callable[[], None]]:
    """Run a worker during the block; yield a check that raises when it has ended."""
    environment = os.environ | {actions.LEDGER: str(ledger.path)}
    with log.open("w+") as output:
        running = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=log.parent,
            text=True,
            process_group=0,  # Ctrl-C goes to the benchmark, which then stops the worker
        )

        def check() -> None:
            if running.poll() is not None:
                output.seek(0)
                last = [line for line in output.read().splitlines() if line.strip()][-1:]
                raise BenchRefused(f"The benchmark's worker ended unexpectedly: {' '.join(last) or running.returncode}")

        try:
            assert running.stdin is not None
            try:
                running.stdin.write(orders)
                running.stdin.close()
            except BrokenPipeError:
                running.wait()  # check() says why it ended
            yield check
            check()
        finally:
            running.terminate()
            try:
                running.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                running.kill()  # its children end with it
                running.wait()
