"""The servers, the worker and the meters of one benchmark, which end with the script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import app
import psutil
import psycopg
import redis
from stamps import Stamps

from sidestream import Jobs
from sidestream.settings import Settings
from sidestream.store import schema

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # tests.support

from tests.support.servers import PostgresServer, RedisServer

HERE = Path(__file__).resolve().parent
SIGNING_KEYS = "bench:0123456789abcdef0123456789abcdef"
"""Only ever used on servers that live as long as a script."""
DATABASE = "bench"
ROUND_TRIPS = ("fcall", "blmpop", "blpop")
"""The commands that Sidestream's clients send; none of them can be called by a script."""
WORKER_STOPS = 30.0
"""Seconds that a worker is given to stop."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was used up so far: seconds of CPU, and commands that reached Redis."""

    redis: float
    postgres: float
    supervisor: float
    children: float
    #: Calls that a client sent and waited for: scripts and blocked reads (what scripts call themselves is not counted).
    trips: int

    def __sub__(self, before: Reading) -> Reading:
        return Reading(
            self.redis - before.redis,
            self.postgres - before.postgres,
            self.supervisor - before.supervisor,
            self.children - before.children,
            self.trips - before.trips,
        )


class Worker(NamedTuple):
    """A running ``sidestream worker run``."""

    process: subprocess.Popen[bytes]
    supervisor: psutil.Process

    def check(self) -> None:
        """Raise :class:`RuntimeError` when it ended by itself."""
        if self.process.poll() is not None:
            raise RuntimeError(f"The worker ended by itself (exit code {self.process.returncode}).")


class World:
    """A Redis (Valkey), a PostgreSQL if asked for, and a folder for the ledgers."""

    def __init__(self, *, postgres: bool = False, binary: str = "valkey") -> None:
        self._stack = ExitStack()
        self.redis = RedisServer(binary=binary, appendfsync="everysec")
        self.postgres = PostgresServer(settings={"shared_buffers": "256MB"}) if postgres else None
        self.dsn: str | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Not in the user's temporary folder: the worker's user must reach it, and it should be in memory.
            shared = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
            self.folder = Path(tempfile.mkdtemp(prefix="sidestream-bench-", dir=shared))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.folder.chmod(0o777)
            stack.enter_context(self.redis)
            if self.postgres is not None:
                stack.enter_context(self.postgres)
                self.dsn = self.postgres.create_database(DATABASE)
                with psycopg.connect(self.dsn) as connection:
                    schema.install(connection.cursor())
                    connection.execute("CREATE TABLE bench_effect (number integer NOT NULL, note text NOT NULL)")
                    connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
            self.client = stack.enter_context(redis.Redis.from_url(self.redis.url))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ledger(self, size: int) -> Stamps:
        """Return an empty ledger for ``size`` jobs."""
        return Stamps.create(self.folder / "stamps", size)

    def settings(self) -> Settings:
        """Return the settings of a client of this world."""
        return Settings(
            redis_url=self.redis.url,
            database_url=self.dsn,
            signing_keys=SIGNING_KEYS,
            data_dir=self.folder / "client",
        )

    @contextmanager
    def jobs(self) -> Iterator[Jobs]:
        """Give the client that applications use."""
        jobs = Jobs(self.settings())
        try:
            yield jobs
        finally:
            jobs.close()

    @contextmanager
    def worker(self, ledger: Stamps, *, children: int = 2, **extra: str) -> Iterator[Worker]:
        """Run ``sidestream worker run`` and stop it at the end of the block."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SIDESTREAM_")},
            "PYTHONPATH": str(HERE),
            "SIDESTREAM_REDIS_URL": self.redis.url,
            "SIDESTREAM_APP": "app:actions",
            "SIDESTREAM_CHILDREN": str(children),
            "SIDESTREAM_SIGNING_KEYS": SIGNING_KEYS,
            "SIDESTREAM_DATA_DIR": str(self.folder / "worker"),
            "SIDESTREAM_LOG_LEVEL": "warning",
            app.STAMPS: str(ledger.path),
            **extra,
        }
        if self.dsn is not None:
            environment["SIDESTREAM_DATABASE_URL"] = self.dsn
        with (self.folder / "worker.log").open("w+") as log:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("sidestream"), "worker", "run"],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=HERE,
            )
            try:
                running = Worker(process, psutil.Process(process.pid))
                yield running
                running.check()
            except Exception:
                log.seek(0)
                print("The worker's log ends with:", log.read()[-3000:], file=sys.stderr)
                raise
            finally:
                process.terminate()
                try:
                    process.wait(WORKER_STOPS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def read(self, worker: Worker | None = None, *, loops: Sequence[int] = ()) -> Reading:
        """Return what the servers, and ``worker`` or the bare ``loops`` (pids), used up so far."""
        info: dict[str, Any] = self.client.info("cpu")
        calls: dict[str, Any] = self.client.info("commandstats")
        trips = sum(int(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ROUND_TRIPS)
        # Through the zygote, which reaps children that are replaced.
        below = [process.pid for process in worker.supervisor.children()] if worker is not None else loops
        return Reading(
            redis=info["used_cpu_sys"] + info["used_cpu_user"],
            postgres=family_cpu(self.postgres.pid) if self.postgres is not None else 0.0,
            supervisor=own_cpu(worker.supervisor) if worker is not None else 0.0,
            children=sum(family_cpu(pid) for pid in below),
            trips=trips,
        )


def own_cpu(process: psutil.Process) -> float:
    """Return the seconds of CPU of one process."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def family_cpu(pid: int) -> float:
    """Return the seconds of CPU of a process, of what it started, and of what it started and reaped."""
    parent = psutil.Process(pid)
    times = parent.cpu_times()
    reaped = times.children_user + times.children_system
    return float(reaped) + own_cpu(parent) + sum(own_cpu(child) for child in parent.children(recursive=True))


def server_versions(world: World) -> dict[str, str]:
    """Return what to print about the servers."""
    found = {}
    info: dict[str, Any] = world.client.info("server")
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    aof = world.client.config_get("append*")
    found["redis server"] = f"{name}, unix socket, appendonly {aof['appendonly']}, appendfsync {aof['appendfsync']}"
    if world.dsn is not None:
        with psycopg.connect(world.dsn) as connection:
            wanted = ("server_version", "fsync", "synchronous_commit", "shared_buffers", "autovacuum")
            shown = [f"{name} {connection.execute(f'SHOW {name}').fetchone()[0]}" for name in wanted]  # type: ignore[index]
            found["postgresql"] = ", ".join(shown)
    return found
