"""Measure one call to Redis, and all maintenance, with 1, 100 and 500 workers on 1 and 500 databases.

The workers are announced and wait for jobs, each on one database. One of them is measured: it publishes, claims what
came due, reclaims, asks for the generation. Their clock stands still, so that no wait runs out meanwhile. Told is the
least of all calls of a round, because what is asked is what a call costs, not who else uses the machine. Then the
maintenance of 1 and of 50 workers runs over 15,000 overdue rows, and the CPU time of PostgreSQL and Redis is read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import psycopg
from harness import Bar, Row, figure, finish, head, options, say
from world import World, server_versions

from sidestream.broker.protocol import Delivery, Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.functions import Functions
from sidestream.broker.redis.keys import PREFIX
from sidestream.job.job import Job
from sidestream.job.names import tag
from sidestream.job.reference import NO_TAG8, row_reference
from sidestream.job.rules import Rules
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.maintenance.task import MaintenanceThread
from sidestream.store import adapter, schema
from sidestream.store.insert import insert
from sidestream.wiring.worker import make_maintenance_tasks
from sidestream.worker.run_dir import DeadWorkers

BAR = Bar("ratio", "<=", 1.5)
WORKERS = (1, 100, 500)
DATABASES = (1, 500)
ACTIONS = frozenset(tag(f"sale.order.action_{number}", 4) for number in range(50))
INFO = json.dumps({"host": "host", "children": 2, "actions": [f"sale.order.action_{number}" for number in range(50)]})
CALLS = ("publish", "keyed publish", "claim", "claim of nothing", "reclaim", "generation")
WAIT_MS = 1000
WARM = 20
TENDED, OVERDUE = 50, 15_000
SETTLES = 5.0
"""Seconds before the maintenance is measured: every worker has looked at everything once."""


class Crowd:
    """So many workers that wait for jobs, each on its database."""

    def __init__(self, world: World, workers: int, databases: int) -> None:
        self._now, self._next = int(time.time() * 1000), 1
        self.broker = RedisBroker(world.redis.url, timeout=10, clock_ms=lambda: self._now)
        self._functions = Functions(self.broker.connection, PREFIX, lambda: self._now)
        self._functions.generation = str(self.broker.begin_generation().number)
        self._databases = [number.to_bytes(8, "big") for number in range(1, databases + 1)]
        for database in self._databases:
            self.broker.configure(database, Rules())
            self.broker.mark_synced(database)
        self.lanes = {
            f"worker-{number}": (lane(self._databases[number % databases], "default"),) for number in range(workers)
        }
        for name, lanes in self.lanes.items():
            self.broker.announce(name, lanes, INFO, 10**9, ACTIONS)
            self.wait(name)
        self.mine = self.lanes["worker-0"]

    def wait(self, name: str) -> None:
        """Let a worker wait for jobs: as a claim does, but for the blocked read itself."""
        block_ms, found = self._functions.call("claim", 7500, name, 1, 0, WAIT_MS, b"", 0, *self.lanes[name])
        assert block_ms == WAIT_MS, (block_ms, found)

    def job(self, *, key: str | None = None, due: int = 0) -> Publication:
        """Return a new job of the measured worker's database."""
        self._next += 1
        reference = row_reference(self._databases[0], self._next, "sale.order.action_1", key)
        return Publication(reference.pack(), self.mine[0], due)

    def publish(self, *, keyed: bool) -> float:
        """Publish a job, which one worker claims, runs and settles before it waits again."""
        job = self.job(key="one" if keyed else None)
        took = _timed(lambda: self.broker.publish([job]))
        who = self.broker.explain(job).worker
        found = self.broker.claim(who, self.lanes[who], free=1)
        assert [one.reference for one in found] == [job.reference]
        self.broker.settle(found)
        self.wait(who)
        return took

    def claim(self) -> float:
        """Claim a job that has just come due, which others could be handed as well."""
        job = self.job(due=self._now + 1)
        self.broker.publish([job])
        self._now += 1
        found: list[Delivery] = []
        took = _timed(lambda: found.extend(self.broker.claim("worker-0", self.mine, free=1)))
        assert [one.reference for one in found] == [job.reference]
        self.broker.settle(found)
        self.wait("worker-0")
        return took

    def calls(self) -> dict[str, Callable[[], float]]:
        """Return what measures the microseconds of each call."""
        return {
            "publish": partial(self.publish, keyed=False),
            "keyed publish": partial(self.publish, keyed=True),
            "claim": self.claim,
            "claim of nothing": lambda: _timed(lambda: self.wait("worker-0")),
            "reclaim": lambda: _timed(
                lambda: self.broker.reclaim("worker-0", self.mine, lease_ms=15_000, grace_ms=7000)
            ),
            "generation": lambda: _timed(lambda: self.broker.generation(self._databases[:1])),
        }


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6


def calls(count: int, rounds: int) -> list[Row]:
    """Measure every call beside every crowd, call by call in turn; what it stands against is one worker alone."""
    sizes = [(workers, databases) for databases in DATABASES for workers in WORKERS]
    found: dict[tuple[str, int, int], list[float]] = {}
    with ExitStack() as stack:
        crowds = {}
        for size in sizes:
            say(f"{size[0]} workers on {size[1]} databases get ready")
            crowds[size] = Crowd(stack.enter_context(World()), *size).calls()
        for turn in range(rounds):
            say(f"round {turn + 1}/{rounds}")
            for name in CALLS:
                took: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
                for _ in range(count + WARM):
                    for size in sizes:  # always after the same others: each finds the processor's caches as cold
                        took[size].append(crowds[size][name]())
                for size, values in took.items():
                    found.setdefault((name, *size), []).append(min(values[WARM:]))
    return [
        Row(
            f"{name}, {workers} workers on {databases} database{'s' if databases > 1 else ''}, least",
            figure(found[name, workers, databases]),
            "us",
            "1 worker on 1 database",
            figure(found[name, 1, 1]),
            BAR,
        )
        for name in CALLS
        for workers, databases in sizes
        if (workers, databases) != (1, 1)
    ]


@contextmanager
def tended(world: World, database: schema.Database, workers: int) -> Iterator[None]:
    """Run the maintenance of so many workers."""
    with ExitStack() as stack:
        for number in range(workers):
            stack.enter_context(_maintenance(world, database, f"worker-{number}"))
        yield


@contextmanager
def _maintenance(world: World, database: schema.Database, name: str) -> Iterator[None]:
    assert world.dsn is not None
    settings = world.settings()
    connect = partial(adapter.connect, world.dsn, f"sidestream/{name}/maintenance", autocommit=True)
    broker, store = RedisBroker(world.redis.url, timeout=10), StoreConnection(connect)
    maintenance = make_maintenance_tasks(
        settings,
        worker=name,
        lanes=(lane(database.tag, "default"), lane(NO_TAG8, "default")),
        broker=broker,
        store=store,
        database=database,
        dead_workers=DeadWorkers(settings.data_dir),
        stop_running=lambda job_id: False,
        on_adopted=lambda: None,
        turns=[],
    )
    broker.begin_generation()
    thread = MaintenanceThread(maintenance)
    thread.start()
    try:
        yield
    finally:
        thread.stop()
        store.close()
        broker.close()


def overdue(seconds: float) -> list[Row]:
    """Measure what the maintenance of 1 and of 50 workers costs the servers while 15,000 jobs are overdue."""
    return [row for workers in (1, TENDED) for row in _overdue(workers, seconds)]


def _overdue(workers: int, seconds: float) -> list[Row]:
    with World(postgres=True) as world:
        assert world.dsn is not None
        with psycopg.connect(world.dsn, autocommit=True) as connection, connection.cursor() as cursor:
            database = schema.identify(cursor)
            for _ in range(0, OVERDUE, 1000):
                insert(cursor, [Job("bench.noop") for _ in range(1000)])
            cursor.execute("UPDATE sidestream_job SET run_at = run_at - interval '1 hour'")
            cursor.execute("VACUUM ANALYZE sidestream_job")
        with tended(world, database, workers):
            time.sleep(SETTLES)
            before, started = world.read(), time.monotonic()
            time.sleep(seconds)
            used, took = world.read() - before, time.monotonic() - started
    what = f"maintenance of {workers} worker{'s' if workers > 1 else ''} over {OVERDUE:,} overdue rows"
    return [
        Row(f"{what}: PostgreSQL", figure(used.postgres / took * 100), "% of a core"),
        Row(f"{what}: Redis", figure(used.redis / took * 100), "% of a core"),
    ]


def main() -> None:
    """Run it."""
    asked = options(__doc__, jobs=300, quick_jobs=30)
    with World() as world:
        head("workers", server_versions(world))
    finish("workers", [*calls(asked.jobs, asked.rounds), *overdue(3.0 if asked.quick else 20.0)])


if __name__ == "__main__":
    main()
