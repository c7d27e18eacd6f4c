"""A database is restored, or replaced by a copy, while a worker is connected to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import pytest

from sidestream import Actions, Jobs
from sidestream.broker.protocol import Broker, lane
from sidestream.clock import SystemClock
from sidestream.errors import ForeignDatabase
from sidestream.executors.odoo.session import OdooSession
from sidestream.executors.python.executor import PythonExecutor
from sidestream.job.outcome import Done, Outcome, Release
from sidestream.job.reason import ReasonCode
from sidestream.job.reference import row_reference
from sidestream.maintenance.reconciler import Reconciler
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import queries
from sidestream.worker.options import WorkerOptions
from sidestream.worker.runner import Runner
from sidestream.worker.wire import Item
from tests.integration.test_client import tag
from tests.support.embedded_worker import EmbeddedWorker

RESTORED = "UPDATE sidestream_job SET action = 'bill', key = NULL"
ELSEWHERE = "UPDATE sidestream_meta SET home = 'elsewhere'"
ADOPTED = "UPDATE sidestream_meta SET database_uuid = gen_random_uuid()"
CUT = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'test/0'"


class Application:
    """Actions that note that they ran, and somebody who changes the database meanwhile."""

    def __init__(self, dsn: str) -> None:
        self.ran: list[str] = []
        self.somebody = psycopg.connect(dsn, autocommit=True)
        self.call = PythonExecutor(Actions(), dsn=dsn, signer=None, application_name=lambda slot: f"test/{slot}")
        actions = self.call._actions
        for name in ("ship", "bill"):
            actions.action(name)(self._noting(name))
        actions.three_step(
            "ask",
            read=lambda context: None,
            call=lambda context, request: self.somebody.execute(RESTORED),
            write=lambda context, request, answer: self.ran.append("ask"),
        )
        self.call.load()
        self.call.begin(0)

    def run(self, reference: bytes) -> Outcome:
        return Runner(self.call).run(Item(reference, None, 0, run_alone=False), lambda acquired: None)[0]

    def row(self, row_id: int) -> tuple[Any, ...]:
        with self.somebody.cursor() as cursor:
            found = queries.job(cursor, row_id)
        assert found is not None
        return found[0].state, found[0].attempts

    def _noting(self, name: str) -> Callable[..., None]:
        def act(context: object) -> None:
            self.ran.append(name)

        return act


@pytest.fixture
def application(dsn: str) -> Iterator[Application]:
    made = Application(dsn)
    yield made
    made.call.close()
    made.somebody.close()


def enqueue(connection: Any, jobs: Jobs, action: str, **options: Any) -> int:
    with jobs.transaction(connection) as tx:
        return tx.enqueue(action, **options)


def test_a_reference_from_before_a_restore_runs_nothing_and_the_row_s_own_is_published(
    application: Application, connection: Any, jobs: Jobs, dsn: str, broker: Broker, tmp_path: Any
) -> None:
    job = enqueue(connection, jobs, "ship")
    application.somebody.execute(RESTORED)
    options = WorkerOptions("worker", (lane(tag(dsn), "default"),), tmp_path)
    worker = EmbeddedWorker(broker, application.call, options, lambda: psycopg.connect(dsn, autocommit=True))
    assert [outcome for _, outcome in worker.run_until_idle()] == [Done()]
    assert application.ran == []
    assert application.row(job) == ("pending", 0)
    link = StoreConnection(lambda: psycopg.connect(dsn, autocommit=True))
    broker.mark_synced(tag(dsn))
    Reconciler(broker, link, SystemClock()).step()
    link.close()
    assert [outcome for _, outcome in worker.run_until_idle()] == [Done()]
    assert application.ran == ["bill"]
    assert application.row(job) == ("done", 0)


@pytest.mark.parametrize("before", [("ship", None), ("bill", "other")], ids=["another action", "another key"])
def test_a_reference_that_is_not_the_row_s_own_acquires_nothing(
    application: Application, connection: Any, jobs: Jobs, dsn: str, before: tuple[str, str | None]
) -> None:
    """With another key, the lock that keeps two jobs of the row's key apart would not be held."""
    job = enqueue(connection, jobs, "bill", key="account")
    assert application.run(row_reference(tag(dsn), job, *before).pack()) == Done()
    assert application.ran == []
    assert application.row(job) == ("pending", 0)
    assert application.run(row_reference(tag(dsn), job, "bill", "account").pack()) == Done()
    assert application.ran == ["bill"]


def test_a_job_whose_database_is_restored_during_its_call_does_not_finish_another_row(
    application: Application, connection: Any, jobs: Jobs, dsn: str
) -> None:
    job = enqueue(connection, jobs, "ask")
    outcome = application.run(row_reference(tag(dsn), job, "ask", None).pack())
    assert isinstance(outcome, Release)
    assert outcome.reason.code is ReasonCode.LOST
    assert application.ran == []
    assert application.row(job) == ("pending", 0)


@pytest.mark.parametrize(
    ("change", "said"), [(ELSEWHERE, "is a copy"), (ADOPTED, "belongs to another database")], ids=["copy", "adopted"]
)
def test_a_new_connection_to_an_exchanged_database_runs_nothing(
    application: Application, connection: Any, jobs: Jobs, dsn: str, change: str, said: str
) -> None:
    first, second = (enqueue(connection, jobs, "ship") for _ in range(2))
    before = tag(dsn)
    assert application.run(row_reference(before, first, "ship", None).pack()) == Done()
    application.somebody.execute(change)
    assert application.somebody.execute(CUT).fetchall() == [(True,)]
    reference = row_reference(before, second, "ship", None).pack()
    lost = application.run(reference)  # on the connection that was cut
    assert isinstance(lost, Release)
    for _ in range(3):
        outcome = application.run(reference)
        assert isinstance(outcome, Release)
        assert outcome.reason.code == "foreign"
        assert said in str(outcome.reason)
    assert application.ran == ["ship"]
    assert application.row(second) == ("pending", 0)


class OdooCursor:
    """As much of Odoo's cursor as a session looks at."""

    def __init__(self, dsn: str) -> None:
        self._cnx = psycopg2.connect(dsn, application_name="test/0")
        self._cnx.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ)
        self._obj = self._cnx.cursor()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed or bool(self._cnx.closed)

    def execute(self, query: Any, params: Any = None) -> None:
        self._obj.execute(query, params)

    def rollback(self) -> None:
        self._cnx.rollback()


class Registry:
    """As much of Odoo's registry."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.made: list[OdooCursor] = []

    def cursor(self) -> OdooCursor:
        self.made.append(OdooCursor(self.dsn))
        return self.made[-1]

    def reset_changes(self) -> None: ...


@pytest.mark.parametrize(
    ("change", "said"), [(ELSEWHERE, "is a copy"), (ADOPTED, "restart the worker")], ids=["copy", "adopted"]
)
def test_a_new_connection_of_odoo_s_to_an_exchanged_database_is_refused(
    application: Application, dsn: str, change: str, said: str
) -> None:
    registry = Registry(dsn)
    session = OdooSession(registry, tag(dsn), lambda pid: None, TimeoutError)
    assert session.cr._cnx.status == psycopg2.extensions.STATUS_READY, "a job begins with a snapshot of its own"
    assert session.cr is registry.made[0], "asked once a connection"
    application.somebody.execute(change)
    session.drop()
    for _ in range(2):
        with pytest.raises(ForeignDatabase, match=said):
            session.cr  # noqa: B018  # opens it
    assert len(registry.made) == 3
    assert all(one.closed for one in registry.made)
