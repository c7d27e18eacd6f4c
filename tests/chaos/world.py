"""Servers, workers and a producer of their own, and what restarts them when they were killed.

A world is one machine in small: a PostgreSQL, a Redis with ``appendfsync always``, one or two supervisors restarted as
systemd would, a producer. Everything lives in one temporary folder, every process dies with the harness.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import redis

from sidestream import Jobs, Settings
from sidestream.job.reference import row_reference
from sidestream.store import schema
from tests.chaos import ledger, processes
from tests.chaos.app import actions
from tests.chaos.harness import Events, Harness
from tests.chaos.programs import ROOT, USER, Launcher, Program, execute
from tests.support.servers import PostgresServer, RedisServer

SIGNING_KEY = "chaos:0123456789abcdef0123456789abcdef"
LEASE = 2.0
RENEW = 0.4
_PREFIX = "sidestream-chaos-"
PATIENCE = 60.0
"""Seconds that anything which has to happen may take on a busy machine."""


class World:
    """See the head of this file. Use it as a context manager."""

    def __init__(
        self,
        *,
        supervisors: int = 2,
        children: int = 2,
        hosts: int = 1,
        seed: str = "0",
        settings: Mapping[str, str] | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        """Prepare one.

        Args:
            supervisors: How many.
            children: Of each.
            hosts: Over how many data folders the supervisors are spread.
            seed: Of the producer.
            settings: More environment.
            launcher: Starts workers and producers; None executes them anew each time.
        """
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.folder.chmod(0o777)
        self.seed = seed
        self.postgres = PostgresServer(self.folder / "postgres", fsync=False)
        self.redis = RedisServer(self.folder / "redis", appendfsync="always")
        self.valkey: Any = self.redis.client()  # redis-py's types leave bytes or text open
        self.harness = Harness(self.folder / "crash")
        self.events = Events(self.folder / "events")
        self._supervisors = supervisors
        self._hosts = hosts
        self._children = children
        self._settings = dict(settings or {})
        self._begin = launcher.start if launcher is not None else execute
        self._connection: psycopg.Connection[Any] | None = None
        self._jobs: Jobs | None = None
        self.dsn = ""
        self.workers: list[Program] = []
        self.producer: Program | None = None

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(self) -> None:
        for name in (ledger.ACCEPTED, ledger.PLAIN):
            (self.folder / name).touch()
            self.give(self.folder / name)
        self.postgres.start()
        self.redis.start()
        self.dsn = self.postgres.create_database("chaos")
        with self.connection().cursor() as cursor:
            schema.install(cursor)
        ledger.install(self.connection())
        self.connection().commit()
        for number in range(self._supervisors):
            self.workers.append(self._worker(number))

    def give(self, path: Path) -> None:
        """Make ``path`` the workers' own."""
        if USER is not None:
            os.chown(path, USER.uid, USER.gid)

    def environment(self) -> dict[str, str]:
        """Return the environment of every process of this world."""
        return {
            "SIDESTREAM_DATABASE_URL": self.dsn,
            "SIDESTREAM_REDIS_URL": self.redis.url,
            "SIDESTREAM_APP": "tests.chaos.app:actions",
            "SIDESTREAM_CHILDREN": str(self._children),
            "SIDESTREAM_NICE": str(os.nice(0)),  # as ours: other programs of this machine are not to delay a test
            "SIDESTREAM_LEASE": str(LEASE),
            "SIDESTREAM_RENEW_INTERVAL": str(RENEW),
            "SIDESTREAM_RECOVERY_PERIOD": "0.7",
            "SIDESTREAM_SIGNING_KEYS": SIGNING_KEY,
            "SIDESTREAM_CRASH_SOCKET": str(self.harness.path),
            "SIDESTREAM_DATA_DIR": str(self.folder),
            "SIDESTREAM_USER": "none",  # they are started as USER already
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_SEED": self.seed,
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))),
            **self._settings,
        }

    def connection(self) -> psycopg.Connection[Any]:
        """Return the harness's own session, acquired again after PostgreSQL was killed."""
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = psycopg.connect(self.dsn, application_name="harness")
        return self._connection

    def query(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of ``query``."""
        rows = self.connection().execute(query, parameters).fetchall()
        self.connection().commit()
        return rows

    def execute(self, statement: str, *parameters: object) -> None:
        """Execute and commit ``statement``."""
        self.connection().execute(statement, parameters)
        self.connection().commit()

    def wait_for(
        self,
        question: str,
        *parameters: object,
        patience: float = PATIENCE,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Wait until the one value that ``question`` selects is true; ``meanwhile`` is called between two looks."""
        deadline = time.monotonic() + patience
        while not self.query(question, *parameters)[0][0]:
            if time.monotonic() > deadline:
                raise AssertionError(f"Not true after {patience:g} s: {question} with {parameters}\n{self.logs()}")
            meanwhile()
            time.sleep(0.01)

    def wait_until(self, true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Wait until ``true()``; fail saying that ``what`` never came true."""
        deadline = time.monotonic() + patience
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError(f"After {patience:g} s it is still not so that {what}.\n{self.logs()}")
            time.sleep(0.02)

    def enqueue(self, action: str, *args: object, key: str | None = None) -> int:
        """Enqueue one job in a separate transaction and return its id."""
        with self.jobs().transaction(self.connection()) as tx:
            return tx.enqueue(action, args, key=key)

    def jobs(self) -> Jobs:
        """Return the harness's own client."""
        if self._jobs is None:
            settings = Settings(database_url=self.dsn, redis_url=self.redis.url, signing_keys=SIGNING_KEY)
            self._jobs = Jobs(settings, actions=actions)
        return self._jobs

    def forget_connection(self) -> None:
        """Drop our session: PostgreSQL was killed under it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def arm(self, point: str, every: int) -> None:
        """Let every process that is started from now on stop at each ``every``-th passage of ``point``."""
        for program in (*self.workers, self.producer):
            if program is not None:
                program.extra["SIDESTREAM_CRASH_AT"] = f"{point}:{every}"

    def start_workers(self) -> None:
        """Start every supervisor that does not run."""
        for worker in self.workers:
            worker.start()

    def add_producer(self, traffic: Mapping[str, float], pace: float = 0.005) -> Program:
        """Define the producer with the weights ``traffic``; start it yourself."""
        environment = {**self.environment(), "CHAOS_TRAFFIC": json.dumps(dict(traffic)), "CHAOS_PACE": str(pace)}
        command = [sys.executable, "-m", "tests.chaos.producer"]
        self.producer = Program("producer", command, environment, self.folder / "producer.log", self._begin)
        return self.producer

    def zygote(self, worker: Program) -> int:
        """Return the pid of the zygote of ``worker``, 0 when it has none."""
        tree = worker.tree()
        return tree[1] if len(tree) > 1 else 0

    def children(self, worker: Program) -> list[int]:
        """Return the pids of the children of ``worker``."""
        zygote = self.zygote(worker)
        return [pid for pid in worker.tree() if zygote and processes.parent(pid) == zygote]

    def wait_for_children(self, worker: Program, patience: float = PATIENCE) -> list[int]:
        """Wait until ``worker`` has all its children and return their pids."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if len(found := self.children(worker)) == self._children:
                return found
            if not worker.pid:
                break
            time.sleep(0.02)
        raise AssertionError(f"{worker.name} has no children; its log ends with:\n{self.last_words(worker)}")

    def redis_answers(self) -> bool:
        """Whether Redis is there and done loading."""
        try:
            return bool(self.valkey.ping())
        except redis.RedisError:
            return False

    def dead_direct(self) -> set[str]:
        """Return the uuids (hex) of the direct jobs that have failed in the broker."""
        found: set[str] = set()
        for key in self.valkey.scan_iter(match="*:failed"):
            found.update(uuid.hex() for uuid in self.valkey.hkeys(key))
        return found

    def whereabouts(self, tokens: Sequence[str]) -> list[str]:
        """Return what the rows and Redis say of these tokens, for a person who has to find out why."""
        query = "SELECT j.* FROM promised p JOIN sidestream_job j ON j.id = p.job_id WHERE p.token = ANY(%s) LIMIT 20"
        cursor = self.connection().execute(query, (list(tokens),))
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        with self.connection().cursor() as other:
            database = schema.identify(other)
        self.connection().commit()
        found = []
        for row in rows:
            reference = row_reference(database.tag, row["id"], row["action"], row["key"]).pack()
            head = self.valkey.hget("sidestream:{s0}:heads", reference[:9] + reference[-8:])
            published = self.valkey.getbit(
                f"sidestream:{{s0}}:published:{database.tag.hex()}:{row['id'] // 32768}", row["id"]
            )
            said = {
                **{name: value for name, value in row.items() if value is not None},
                "lease": self.valkey.hget("sidestream:{s0}:leases", reference),
                "attempts": self.valkey.hget("sidestream:{s0}:attempts", reference),
                "published": published,
                "head": head and int.from_bytes(head[9:17], "big"),
                "in": [key for key in self.valkey.scan_iter(_type="zset") if self.valkey.zscore(key, reference)],
            }
            found.append(" ".join(f"{name}={value}" for name, value in said.items()))
        found += [f"{name}: {self.valkey.hgetall('sidestream:{s0}:' + name)}" for name in ("meta", "info", "idle")]
        return [*found, f"workers: {self.valkey.zrange('sidestream:{s0}:workers', 0, -1, withscores=True)}"]

    def last_words(self, program: Program, size: int = 3000) -> str:
        """Return the end of a program's log."""
        return program.log.read_text(errors="replace")[-size:] if program.log.exists() else "(no log)"

    def logs(self) -> str:
        """Return the end of every worker's log."""
        return "\n".join(f"--- {worker.name}\n{self.last_words(worker)}" for worker in self.workers)

    def stop(self) -> None:
        """Kill the workers and the producer with everything below them; the servers go on."""
        programs = [*self.workers, *([self.producer] if self.producer else [])]
        processes.kill(*(pid for program in programs for pid in program.tree()))
        for program in programs:
            program.reap()

    def close(self) -> None:
        """End everything and remove the folder."""
        self.stop()
        if self._jobs is not None:
            self._jobs.close()
        self.forget_connection()
        self.valkey.close()
        for server in (self.redis, self.postgres):
            server.close()
        self.harness.close()
        self.events.close()
        if not os.environ.get("CHAOS_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _worker(self, number: int) -> Program:
        host = number % self._hosts
        data = self.folder / f"host{host}"
        data.mkdir(mode=0o700, exist_ok=True)
        self.give(data)
        environment = {**self.environment(), "SIDESTREAM_DATA_DIR": str(data)}
        command = [sys.executable, "-c", "from sidestream.cli.main import main; main()", "worker", "run"]
        return Program(f"worker{number}", command, environment, self.folder / f"worker{number}.log", self._begin)


def _sweep() -> None:
    """Remove the folders of killed harnesses, whose names contain their pids."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not processes.alive(int(pid)) and not os.environ.get("CHAOS_KEEP"):
            shutil.rmtree(left, ignore_errors=True)
