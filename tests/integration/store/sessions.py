"""Sessions that a test steps through one statement at a time, over either driver; it waits for events, not time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
import psycopg2

from sidestream.job.job import Job
from sidestream.store import acquire, candidates, outcomes
from sidestream.store.cursor import Cursor
from sidestream.store.insert import insert
from sidestream.store.job_row import JobRow

T = TypeVar("T")

DRIVERS: dict[str, Callable[..., Any]] = {"psycopg": psycopg.connect, "psycopg2": psycopg2.connect}
ERRORS = (psycopg.Error, psycopg2.Error)
DEADLINE = 20.0


def due_jobs(cur: Cursor, queues: Sequence[str], limit: int, *, excluded: Collection[int] = ()) -> list[JobRow]:
    """Return the first ``limit`` candidates of all these queues together, without aging."""
    found = candidates.candidates(cur, queues, limit, excluded=excluded, aging=float("inf"))
    return sorted((one.job for one in found), key=lambda job: (job.priority, job.run_at, job.id))[:limit]


class Session:
    """One connection in autocommit mode: transactions are begun and ended by hand, as the executor does it."""

    def __init__(self, driver: str, dsn: str, **options: str) -> None:
        # A statement that waits for somebody's row must fail here, not hang.
        settings = {"lock_timeout": "3s", **options}
        self.connection = DRIVERS[driver](
            dsn, options=" ".join(f"-c {name}={value}" for name, value in settings.items()), application_name="test"
        )
        self.connection.autocommit = True
        self.cur = self.connection.cursor()
        self.pid: int = self.value("SELECT pg_backend_pid()")

    def execute(self, statement: str, parameters: dict[str, Any] | None = None) -> None:
        self.cur.execute(statement, parameters)

    def all(self, statement: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        self.cur.execute(statement, parameters)
        return self.cur.fetchall()

    def value(self, statement: str, parameters: dict[str, Any] | None = None) -> Any:
        [(value,)] = self.all(statement, parameters)
        return value

    def begin(self) -> None:
        """Begin as jobs, and Odoo's requests, do."""
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")

    def commit(self) -> None:
        self.execute("COMMIT")

    def rollback(self) -> None:
        self.execute("ROLLBACK")

    def insert(self, *jobs: Job) -> list[JobRow]:
        return insert(self.cur, jobs)

    def one(self, **options: Any) -> int:
        """Insert one job and return its id."""
        return self.insert(Job("test.act", **options))[0].id

    def acquire_row(self, job_id: int, **options: Any) -> acquire.AcquireResult:
        """Begin a job's transaction and try to acquire its row in it."""
        self.begin()
        return acquire.acquire_job(self.cur, job_id, **options)

    def hold(self, job_id: int) -> acquire.Acquired:
        """Acquire a row that must be free."""
        found = self.acquire_row(job_id)
        assert isinstance(found, acquire.Acquired), found
        return found

    def done(self, job_id: int) -> None:
        """Run a job whose row must be free to its end."""
        self.hold(job_id)
        outcomes.finish(self.cur, job_id)
        self.commit()

    def row(self, job_id: int, columns: str = "state, attempts, crashes") -> tuple[Any, ...]:
        [found] = self.all(f"SELECT {columns} FROM sidestream_job WHERE id = %(id)s::bigint", {"id": job_id})
        return found

    def close(self) -> None:
        self.connection.close()


def wait_until(condition: Callable[[], T], what: str) -> T:
    """Return what ``condition`` gives as soon as it is true."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError(f"It never came true that {what}.")


def until_waiting(watcher: Session, pid: int) -> None:
    """Return once the backend ``pid`` waits for a lock."""
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %(pid)s::integer AND NOT granted)"
    wait_until(lambda: watcher.value(query, {"pid": pid}), f"backend {pid} waits for a lock")


def until_busy(watcher: Session, pid: int) -> None:
    """Return once the backend ``pid`` is in the middle of a pg_sleep."""
    query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %(pid)s::integer AND wait_event = 'PgSleep')"
    wait_until(lambda: watcher.value(query, {"pid": pid}), f"backend {pid} sleeps")


def until_gone(watcher: Session, pid: int) -> None:
    """Return once the backend ``pid`` does not exist any more."""
    query = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %(pid)s::integer)"
    wait_until(lambda: watcher.value(query, {"pid": pid}), f"backend {pid} is gone")


def beside(call: Callable[[], T]) -> Future[T]:
    """Run ``call`` in a thread."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future
