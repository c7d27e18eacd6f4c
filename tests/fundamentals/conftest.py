"""Run all of Sidestream in one process: a real PostgreSQL, the memory broker, the embedded worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from sidestream import Actions
from sidestream.broker.memory import MemoryBroker
from sidestream.broker.protocol import lane
from sidestream.client import Client
from sidestream.executors.python.executor import PythonExecutor
from sidestream.job.codec import Signer
from sidestream.job.outcome import Outcome
from sidestream.job.reference import NO_TAG8
from sidestream.job.rules import Rules
from sidestream.relay.relay import Relay
from sidestream.store import adapter, queries, schema
from sidestream.worker.options import WorkerOptions
from tests.support.embedded_worker import EmbeddedWorker


class Shop:
    """An application with its actions, its database, its client and its worker."""

    def __init__(self, dsn: str, tmp_path: Any) -> None:
        self.actions = Actions()
        self.connection = psycopg.connect(dsn)
        with self.connection.cursor() as cursor:
            database = schema.install(cursor)
            cursor.execute("CREATE TABLE stock (product text, amount int)")
        self.connection.commit()
        broker = MemoryBroker()
        broker.begin_generation()
        for tag in (database.tag, NO_TAG8):
            broker.configure(tag, Rules())
        signer = Signer([("lesson", b"l" * 32)])
        self.jobs = Client(Relay(lambda: broker, wait=10), lambda: signer)
        self._dsn = dsn
        self._broker = broker
        self._signer = signer
        self._options = WorkerOptions(
            worker="lesson",
            lanes=(lane(database.tag, "default"), lane(NO_TAG8, "default")),
            run_folder=tmp_path,
        )

    def work(self) -> list[Outcome]:
        """Run every job that can run now; return the outcomes."""
        worker = EmbeddedWorker(
            self._broker,
            PythonExecutor(
                self.actions, dsn=self._dsn, signer=self._signer, application_name=lambda slot: f"lesson/{slot}"
            ),
            self._options,
            lambda: adapter.connect(self._dsn, "lesson/outcome_writer", autocommit=True),
        )
        try:
            return [outcome for _, outcome in worker.run_until_idle()]
        finally:
            worker.close()

    def stock(self) -> list[tuple[Any, ...]]:
        """Return the rows that the actions wrote, in their order."""
        found = self.connection.execute("SELECT product, amount FROM stock ORDER BY ctid").fetchall()
        self.connection.commit()
        return found

    def row(self, job_id: int) -> queries.Row:
        """Return a job's row."""
        with self.connection.cursor() as cursor:
            found = queries.job(cursor, job_id)
        self.connection.commit()
        assert found is not None
        return found[0]


@pytest.fixture
def shop(database: str, tmp_path: Any) -> Iterator[Shop]:
    """An empty shop."""
    shop = Shop(database, tmp_path)
    yield shop
    shop.connection.close()
