"""A rig for the worker's acceptance tests: a database, a Redis, a client, and workers started as an operator would."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sidestream import Jobs, Settings
from sidestream.store import queries, schema

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("sidestream")


class Rig:
    """A database, a Redis, a client, and workers started as an operator would."""

    def __init__(self, folder: Path, dsn: str, redis_url: str) -> None:
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SIDESTREAM_")},
            "SIDESTREAM_USER": os.environ["SIDESTREAM_USER"],
            "SIDESTREAM_DATABASE_URL": dsn,
            "SIDESTREAM_REDIS_URL": redis_url,
            "SIDESTREAM_APP": "tests.acceptance.worker_app:actions",
            "SIDESTREAM_DATA_DIR": str(folder / "data"),
            "SIDESTREAM_SIGNING_KEYS": f"k1:{'s' * 32}",
            "SIDESTREAM_LEASE": "2",
            "SIDESTREAM_RENEW_INTERVAL": "0.5",
            "SIDESTREAM_RECOVERY_PERIOD": "0",
            "SIDESTREAM_NICE": str(os.nice(0)),  # as ours: other programs of this machine are not to delay a test
        }
        self.folder = folder
        self.dsn = dsn
        #: Readable for the worker's user, too.
        self.folder = folder
        self.log = folder / "worker.log"
        self.settings = Settings(
            database_url=dsn, redis_url=redis_url, data_dir=folder / "data", signing_keys=f"k1:{'s' * 32}"
        )
        self.look = psycopg.connect(dsn, autocommit=True)
        with self.look.transaction(), self.look.cursor() as cursor:
            schema.install(cursor)
            cursor.execute("CREATE TABLE effect (job_id bigint, uuid uuid, attempt int, pid int, what text)")
        self.connection = psycopg.connect(dsn)
        self.jobs = Jobs(self.settings)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it serves."""
        seen = self.log.read_bytes().count(b" serves ") if self.log.exists() else 0
        with self.log.open("ab") as log:
            worker = subprocess.Popen(
                [COMMAND, "worker", "run"], cwd=ROOT, env={**self.variables, **variables}, stderr=log, stdout=log
            )
        self.workers.append(worker)
        self.until(lambda: self.log.read_bytes().count(b" serves ") > seen or worker.poll() is not None)
        assert worker.poll() is None, self.log.read_text()
        return worker

    def enqueue(self, action: str, *args: Any, **options: Any) -> int:
        """Enqueue in a separate transaction and return the id."""
        with self.jobs.transaction(self.connection) as transaction:
            return transaction.enqueue(action, args, **options)

    def job(self, job_id: int) -> queries.Row:
        """Return the row."""
        with self.look.cursor() as cursor:
            found = queries.job(cursor, job_id)
        assert found is not None
        return found[0]

    def events(self, job_id: int) -> list[str]:
        """Return the kinds of attempt rows of the job."""
        found = self.look.execute("SELECT event FROM sidestream_attempt WHERE job_id = %s ORDER BY id", (job_id,))
        return [event for (event,) in found]

    def effects(self, job_id: int | None = None) -> list[str]:
        """Return what actions committed."""
        found = self.look.execute("SELECT what FROM effect WHERE %s::bigint IS NULL OR job_id = %s", (job_id, job_id))
        return [what for (what,) in found]

    def ends(self, job_id: int, seconds: float = 20) -> queries.Row:
        """Wait until the job is over."""
        self.until(lambda: self.job(job_id).state != "pending", seconds)
        return self.job(job_id)

    def until(self, seen: Callable[[], object], seconds: float = 20, every: float = 0.01) -> None:
        """Look for ``seen`` at every ``every`` seconds; fail with the worker's log when it never comes."""
        deadline = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > deadline:
                log = self.log.read_text() if self.log.exists() else ""
                pytest.fail(f"Waited {seconds} s in vain. The worker said:\n{log[-4000:]}")
            time.sleep(every)

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait(20)
        self.connection.close()
        self.look.close()


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that the worker's unprivileged user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="sidestream-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)
