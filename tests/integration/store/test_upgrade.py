"""Tables of an earlier version become those of this one, rows kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidestream.errors import SchemaMismatch
from sidestream.job.job import Job
from sidestream.store import adapter, rows, schema
from tests.integration.store.conftest import Connect
from tests.integration.store.sessions import ERRORS, Session

OLD = Path(__file__).parent / "old"
CATALOG = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_name LIKE 'sidestream%' ORDER BY 1, 2"""
INDEXES = "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'sidestream%' ORDER BY 1"
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated FROM pg_constraint
    WHERE conrelid::regclass::text LIKE 'sidestream%' ORDER BY 1, 2"""
META = """
    INSERT INTO sidestream_meta (version, home) SELECT 1, (SELECT system_identifier || '/' || d.oid
    FROM pg_control_system(), pg_database d WHERE d.datname = current_database())"""


def version_1(session: Session) -> None:
    session.execute((OLD / "schema_1.sql").read_text())
    session.execute(META)


def catalog(session: Session) -> list[list[tuple[object, ...]]]:
    return [session.all(query) for query in (CATALOG, INDEXES, CONSTRAINTS)]


def test_version_1_becomes_this_one_and_keeps_its_rows(fresh: Connect) -> None:
    session = fresh()
    version_1(session)
    with pytest.raises(SchemaMismatch, match=r"version 1, expected 3; to upgrade them, run: sidestream init-db"):
        schema.identify(session.cur)
    session.execute(
        "INSERT INTO sidestream_job (action, queue, key, payload, state) SELECT 'act', 'default', 'k' || n,"
        " '{\"v\":1,\"args\":[],\"kwargs\":{}}', CASE WHEN n % 2 = 0 THEN 'open' ELSE 'done' END"
        " FROM generate_series(1, 100) n"
    )
    uuid = session.value("SELECT database_uuid::text FROM sidestream_meta")
    filenode = session.value("SELECT pg_relation_filenode('sidestream_job')")
    session.begin()
    assert str(schema.install(session.cur).uuid) == uuid
    session.commit()
    assert session.value("SELECT pg_relation_filenode('sidestream_job')") == filenode, "no row was rewritten"
    assert session.all("SELECT DISTINCT priority, snoozes FROM sidestream_job") == [(5, 0)]
    upgraded = catalog(session)
    session.done(2)
    session.execute("DROP TABLE sidestream_job, sidestream_attempt, sidestream_job_record, sidestream_control, "
                    "sidestream_meta, sidestream_rule")  # fmt: skip
    schema.install(session.cur)
    assert upgraded == catalog(session), "an upgraded database is as a new one"
    assert schema.install(session.cur) == schema.identify(session.cur), "a second time changes nothing"


def test_an_upgrade_that_fails_changes_nothing(fresh: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    session, other = fresh(), fresh()
    version_1(session)
    other.begin()
    other.all("SELECT * FROM sidestream_job")  # a worker's transaction that reads
    session.begin()
    monkeypatch.setattr(schema, "_UPGRADE_PATIENCE", "100ms")
    with pytest.raises(ERRORS) as caught:
        schema.install(session.cur)
    assert adapter.sqlstate(caught.value) == adapter.LOCK_NOT_AVAILABLE
    session.rollback()
    assert session.value("SELECT version FROM sidestream_meta") == 1
    other.rollback()
    schema.install(session.cur)
    assert rows.insert(session.cur, [Job("act", priority=1)])[0].id == 1
