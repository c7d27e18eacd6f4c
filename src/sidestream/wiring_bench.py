"""What ``sidestream bench`` measures: the engine's part on the user's own servers, in a corner of its own.

In Redis all keys have a prefix of their own, which is erased at the end; in PostgreSQL every row is rolled back, so no
worker ever sees one. A worker of its own runs direct jobs; those of production are not touched, only slowed.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from sidestream import process
from sidestream.broker.redis import embedded
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.erasing import erase
from sidestream.client import Client
from sidestream.errors import SidestreamError
from sidestream.executors.bench_action import ACTION, LEDGER, Ledger
from sidestream.job.codec import Signer
from sidestream.logs import set_up_logging
from sidestream.relay import Relay
from sidestream.settings import PREFIX as VARIABLE
from sidestream.settings import Settings
from sidestream.store import adapter, schema
from sidestream.wiring import build_broker, store_connection, store_url
from sidestream.wiring_worker import Worker

ROUND_TRIPS = 500
INSERTS = 200
COMMITS = 50
MANY = 1000
PACED = 50
"""Jobs of the idle part."""
PAUSE = 0.02
PHASE = 5.0
"""Seconds that a series of calls may take; a slow server gets fewer of them."""
FILL = 10.0
"""Seconds that filling the queue may take; a distant server gets fewer jobs."""
DRAIN = 20.0
"""Seconds without an end after which the worker counts as stuck."""
STOPS = 10.0
DIRECT_TIMEOUT = 5.0
SERVE = "from sidestream.wiring_bench import serve; serve()"


class Figure(NamedTuple):
    """One line of the answer."""

    what: str
    #: The median, or the only value.
    value: float
    #: None for a single value.
    p99: float | None
    unit: str


def run(settings: Settings, jobs: int) -> list[Figure]:
    """Measure with at most ``jobs`` jobs, and leave nothing behind.

    Raises:
        SidestreamError: One of its kinds, when a server cannot be used or the worker cannot work.
    """
    url = settings.redis_url or embedded.ensure(settings.data_dir, user=settings.user)
    settings = settings.model_copy(update={"redis_url": url})
    figures = [] if store_url(settings) is None else _postgres(settings)
    prefix = f"sidestream:{{bench-{secrets.token_hex(4)}}}:"
    broker = build_broker(settings, prefix=prefix)
    try:
        erase(broker.connection, prefix)  # nothing is there; a user who may not erase is refused before there is
        trip = _series(lambda: broker.connection.run("PING"), ROUND_TRIPS)
        figures.insert(0, _figure("round trip to Redis", trip))
        broker.begin_generation()
        figures += _engine(settings, prefix, jobs)
    finally:
        _erase(broker, prefix)
    return figures


def serve() -> None:
    """Be the trial's worker: ``python -c`` with the prefix and the parent's pid, settings in the environment."""
    settings = Settings()
    set_up_logging(settings.log_level, settings.log_format)
    worker = Worker(settings, prefix=sys.argv[1])
    process.die_with_parent(int(sys.argv[2]), 15)  # after the change of user, which would clear it
    worker.run()


def _postgres(settings: Settings) -> list[Figure]:
    client = Client(Relay(lambda: build_broker(settings)), lambda: Signer([]))  # its relay never gets anything
    job = client.job(ACTION, (0,))
    with store_connection(settings, "sidestream/bench") as connection:
        try:
            with connection.cursor() as cursor:
                schema.identify(cursor, allow_copy=True)  # also says that the tables are missing
                trip = _series(lambda: cursor.execute("SELECT 1"), ROUND_TRIPS)
                commits = _series(connection.commit, COMMITS, before=lambda: _some_wal(cursor))
            # Rolled back, so that no worker ever sees these rows and none is left.
            singles = _series(lambda: client.insert(connection, [job]), INSERTS)
            together = _series(lambda: client.insert(connection, [job] * MANY), 1)
            connection.rollback()
        except psycopg.Error as error:
            raise adapter.translate(error, "measured by the command line") from error
    return [
        _figure("round trip to PostgreSQL", trip),
        _figure("commit in PostgreSQL, written to disk", commits),
        _figure("enqueue 1 job in a transaction, without its commit", singles),
        Figure(f"enqueue {MANY:,} jobs in one call, without their commit", together[0], None, "ms"),
    ]


def _some_wal(cursor: psycopg.Cursor[Any]) -> None:
    """Give the next commit something to flush, without a row of anybody's."""
    cursor.execute("SELECT pg_logical_emit_message(true, 'sidestream.bench', '')")


def _engine(settings: Settings, prefix: str, jobs: int) -> list[Figure]:
    key = ("bench", secrets.token_bytes(32).hex().encode())
    client = Client(Relay(lambda: build_broker(settings, prefix=prefix)), lambda: Signer([key]))
    with tempfile.TemporaryDirectory(prefix="sidestream-bench-") as name, client:
        folder = Path(name)
        folder.chmod(0o711)  # the user that the worker becomes finds its files in there
        ledger = Ledger.create(folder / "ledger", jobs + PACED)
        numbers = iter(range(jobs))

        def enqueue() -> None:
            client.enqueue_direct(ACTION, (next(numbers),), timeout=DIRECT_TIMEOUT)

        filled = _series(enqueue, jobs, seconds=FILL)
        size = len(filled)
        with _worker(settings, prefix, key, folder) as check:
            _wait(ledger, 0, size, check)
            started = ledger.times(0, size)
            idle = _idle(client, ledger, size, check)
        twice = ledger.more_than_once()
        if twice:
            raise SidestreamError(f"{twice} jobs ran more than once: this is a fault in Sidestream, please report it.")
    rate = (size - 1) / (max(started) - min(started))
    return [
        _figure("enqueue 1 direct job", filled),
        _figure("idle, enqueue to start of a direct job", idle),
        Figure(f"{size:,} empty direct jobs, {settings.children} children", rate, None, "jobs/s"),
    ]


def _idle(client: Client, ledger: Ledger, first: int, check: Callable[[], None]) -> list[float]:
    took = []
    for number in range(first, first + PACED):
        time.sleep(PAUSE)  # the pace of the measurement, not a wait for anything
        called = time.time()
        client.enqueue_direct(ACTION, (number,), timeout=DIRECT_TIMEOUT)
        _wait(ledger, number, number + 1, check)
        took.append((ledger.times(number, number + 1)[0] - called) * 1000)
    return took


@contextmanager
def _worker(settings: Settings, prefix: str, key: tuple[str, bytes], folder: Path) -> Iterator[Callable[[], None]]:
    """Run a worker of the trial's own and give a function that raises when it has ended by itself."""
    own = settings.model_copy(
        update={
            "app": "sidestream.executors.bench_action:actions",
            "database_url": None,
            "odoo_config": None,
            "odoo_database": None,
            "queues": ("default",),
            "data_dir": folder / "data",
            "signing_keys": (key,),
            "log_level": "warning",
            "log_format": "text",
        }
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLE)}
    environment |= _variables(own) | {LEDGER: str(folder / "ledger")}
    log = folder / "log"
    with log.open("w") as out:
        command = [sys.executable, "-c", SERVE, prefix, str(os.getpid())]
        running = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)

    def check() -> None:
        if running.poll() is not None:
            said = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise SidestreamError(f"The worker ended by itself (code {running.returncode}): {said}")

    try:
        yield check
    finally:
        running.terminate()
        try:
            running.wait(STOPS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _variables(settings: Settings) -> dict[str, str]:
    """Return the environment that says the same as ``settings``, so that no settings file has a say."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(f"{one[0]}:{one[1].decode()}" if isinstance(one, tuple) else one for one in value)
        return "none" if value is None else str(value)

    return {f"{VARIABLE}{name.upper()}": text(getattr(settings, name)) for name in Settings.model_fields}


def _wait(ledger: Ledger, first: int, end: int, check: Callable[[], None]) -> None:
    limit = time.monotonic() + DRAIN
    while (ran := ledger.ran(first, end)) < end - first:
        check()
        if time.monotonic() > limit:
            raise SidestreamError(
                f"Only {ran:,} of {end - first:,} jobs ran within {DRAIN:.0f} s; use a smaller --jobs."
            )
        time.sleep(0.002)


def _series(
    call: Callable[[], object], most: int, *, seconds: float = PHASE, before: Callable[[], object] | None = None
) -> list[float]:
    """Return the milliseconds of each of at most ``most`` calls, begun within ``seconds``; two calls at least."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while len(took) < most and (len(took) < 2 or time.monotonic() < end):
        if before is not None:
            before()
        started = time.perf_counter()
        call()
        took.append((time.perf_counter() - started) * 1000)
    return took


def _figure(what: str, values: Sequence[float]) -> Figure:
    ordered = sorted(values)
    return Figure(what, ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))], "ms")


def _erase(broker: RedisBroker, prefix: str) -> None:
    try:
        erase(broker.connection, prefix)
    finally:
        broker.close()
