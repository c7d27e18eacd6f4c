"""Prepared statements: nothing that happens to a connection, a table or a transaction may break the next job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sidestream.job.job import Job
from sidestream.job.states import State
from sidestream.store import acquire, outcomes, prepared, schema
from sidestream.store.acquire import Acquired
from sidestream.store.prepared import PlanGone, Prepared
from tests.integration.store.sessions import Session

NAMES = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'sidestream_%%'"


class Spy:
    """psycopg2's cursor, and the texts that it was given."""

    def __init__(self, session: Session) -> None:
        self.texts: list[str] = []
        self._cursor = session.cur

    def execute(self, text: str, parameters: object = None) -> None:
        self.texts.append(text)
        self._cursor.execute(text, parameters)

    @property
    def description(self) -> object:
        return self._cursor.description

    def fetchone(self) -> object:
        return self._cursor.fetchone()

    def fetchall(self) -> object:
        return self._cursor.fetchall()

    def count(self, word: str) -> int:
        return sum(text.lstrip().startswith(word) for text in self.texts)


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    """A session of Odoo's driver on a database of its own, whose tables a test may change."""
    session = Session("psycopg2", database)
    schema.install(session.cur)
    yield session
    session.close()


@pytest.fixture(autouse=True)
def _never_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SLOW", 3600.0)


@pytest.fixture
def spy(session: Session) -> Spy:
    return Spy(session)


@pytest.fixture
def cursor(spy: Spy) -> Prepared:
    return Prepared(spy)


def run(session: Session, cursor: Prepared, job_id: int, prefetch: tuple[str, ...] = ()) -> Acquired:
    """One job from BEGIN to COMMIT."""
    session.begin()
    found = acquire.acquire_job(cursor, job_id, prefetch=prefetch)
    assert isinstance(found, Acquired), found
    outcomes.finish(cursor, job_id)
    session.commit()
    assert session.row(job_id, "state") == ("done",)
    return found


def test_a_statement_is_prepared_once(session: Session, spy: Spy, cursor: Prepared) -> None:
    for _ in range(12):  # from the sixth on PostgreSQL may keep the plan
        run(session, cursor, session.one())
    assert (spy.count("PREPARE"), spy.count("EXECUTE"), len(spy.texts)) == (2, 24, 26)


def test_another_prefetched_expression_is_another_statement(session: Session, spy: Spy, cursor: Prepared) -> None:
    assert run(session, cursor, session.one(), ("mine.id * 2",)).prefetched[0] % 2 == 0
    assert run(session, cursor, session.one(), ("'%%'::text", "mine.queue")).prefetched == ("%", "default")
    assert spy.count("PREPARE") == 3


def test_a_row_that_is_not_acquired_says_why(session: Session, cursor: Prepared) -> None:
    done, first, second = session.one(), session.one(key="k"), session.one(key="k")
    run(session, cursor, done)
    session.begin()
    assert acquire.acquire_job(cursor, done) == acquire.Terminal(State.DONE)
    assert acquire.acquire_job(cursor, second) == acquire.Blocked(first)
    assert acquire.acquire_job(cursor, second + 1) == acquire.Missing()
    session.rollback()


def test_a_rolled_back_transaction_keeps_what_it_prepared(session: Session, spy: Spy, cursor: Prepared) -> None:
    """PREPARE is not undone with the transaction: preparing again under the same name would fail for ever."""
    job_id = session.one()
    session.begin()
    assert isinstance(acquire.acquire_job(cursor, job_id), Acquired)
    session.rollback()
    run(session, cursor, job_id)
    assert spy.count("PREPARE") == 2


def test_a_failed_prepare_is_not_remembered(session: Session, cursor: Prepared) -> None:
    job_id = session.one()
    session.begin()
    with pytest.raises(Exception, match="no_such_table"):
        acquire.acquire_job(cursor, job_id, prefetch=("(SELECT max(id) FROM no_such_table)",))
    session.rollback()
    session.execute("CREATE TABLE no_such_table (id integer)")
    assert run(session, cursor, job_id, ("(SELECT max(id) FROM no_such_table)",)).prefetched == (None,)


@pytest.mark.parametrize("how", ["DEALLOCATE ALL", "DISCARD ALL", "reset"])
def test_statements_that_somebody_dropped(session: Session, spy: Spy, cursor: Prepared, how: str) -> None:
    """Odoo's pool resets a connection whenever it is borrowed: psycopg2 then says DISCARD ALL."""
    job_id = session.one()
    run(session, cursor, session.one())
    if how == "reset":
        session.connection.reset()
        session.connection.autocommit = True
    else:
        session.execute(how)
    session.begin()
    with pytest.raises(PlanGone):
        acquire.acquire_job(cursor, job_id)
    session.rollback()
    run(session, cursor, job_id)
    assert session.value(NAMES) == 0, "for a while nothing is prepared"
    for _ in range(prepared.PLAIN_AFTER_GONE):
        run(session, cursor, session.one())
    assert session.value(NAMES) == 2
    assert spy.count("PREPARE") == 4


def test_an_action_that_drops_them_is_done_at_its_second_run(session: Session, cursor: Prepared) -> None:
    job_id = session.one()
    run(session, cursor, session.one())
    session.begin()
    acquire.acquire_job(cursor, job_id)
    session.execute("DEALLOCATE ALL")
    with pytest.raises(PlanGone):
        outcomes.finish(cursor, job_id)
    session.rollback()
    session.begin()
    assert isinstance(acquire.acquire_job(cursor, job_id), Acquired)
    session.execute("DEALLOCATE ALL")
    outcomes.finish(cursor, job_id)
    session.commit()


def test_a_column_of_another_type(session: Session, cursor: Prepared) -> None:
    """As an upgrade may do it: PostgreSQL refuses the plan (0A000), and the job's next try goes through."""
    for _ in range(8):
        run(session, cursor, session.one())
    job_id = session.one()
    session.execute("ALTER TABLE sidestream_job ALTER COLUMN context TYPE varchar")
    session.begin()
    with pytest.raises(PlanGone, match="result type"):
        acquire.acquire_job(cursor, job_id)
    session.rollback()
    run(session, cursor, job_id)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE sidestream_job ADD COLUMN extra text; CREATE INDEX ON sidestream_job (created_at)",
        "SET search_path TO pg_catalog, public",
    ],
)
def test_a_change_after_which_postgresql_plans_again(session: Session, spy: Spy, cursor: Prepared, change: str) -> None:
    for _ in range(8):
        run(session, cursor, session.one())
    session.execute(change)
    run(session, cursor, session.one())
    assert spy.count("PREPARE") == 2


def test_a_plan_for_a_small_table_is_given_up(
    session: Session, spy: Spy, cursor: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.execute("ALTER TABLE sidestream_job SET (autovacuum_enabled = off)")
    for _ in range(8):
        run(session, cursor, session.one())
        session.execute("VACUUM ANALYZE sidestream_job")
    for _ in range(8):
        run(session, cursor, session.one())
    finish = spy.texts[-1].replace("%s", "1")
    session.insert(*[Job("test.act") for _ in range(5_000)])

    def plan() -> str:
        return "\n".join(line for (line,) in session.all(f"EXPLAIN {finish}"))

    assert "Seq Scan on sidestream_job" in plan(), "this is what it is about"
    run(session, cursor, session.one())
    assert "Seq Scan on sidestream_job" in plan()
    monkeypatch.setattr(prepared, "SLOW", 0.0)
    for _ in range(8):
        run(session, cursor, session.one())
    assert "Seq Scan on sidestream_job" not in plan()
    assert (spy.count("PREPARE"), spy.count("DISCARD")) == (2, 1), "once in a while, however slow everything is"
