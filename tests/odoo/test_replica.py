"""With ``db_replica_host``, Odoo reads from a replica, which does not show the locks of running jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.odoo.browser import Session
from tests.odoo.conftest import CHAOS
from tests.odoo.test_executor import courier
from tests.support.odoo import DATABASE, OdooWorld
from tests.support.server_process import free_port
from tests.support.servers import PostgresServer, postgres_binary

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def replica() -> Iterator[PostgresServer]:
    """A replica that is not created yet."""
    server = PostgresServer()
    server.port = free_port()
    yield server
    server.close()


@pytest.fixture
def world(replica: PostgresServer) -> Iterator[OdooWorld]:
    """An Odoo whose read-only requests use the replica."""
    made = OdooWorld(
        ("sidestream", "sidestream_chaos"),
        base=("base", "web"),
        demo_data=False,
        addon_paths=[CHAOS],
        options={"db_replica_host": "127.0.0.1", "db_replica_port": replica.port},
    )
    with made:
        primary = ("-h", "127.0.0.1", "-p", str(made.postgres.port), "-U", "postgres")
        copied = ("-D", str(replica.data), "--write-recovery-conf", "--checkpoint", "fast")
        replica.run(postgres_binary("pg_basebackup"), *primary, *copied)
        replica.start()
        yield made


def test_a_running_job_is_shown_as_running(world: OdooWorld, replica: PostgresServer) -> None:
    user = Session(world.serve().url, DATABASE, "admin", "admin")
    world.work()
    running, enough = threading.Event(), threading.Event()

    def answer_late(calls: list[str]) -> None:
        running.set()
        enough.wait(60)

    def shown() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = user.call(
            "sidestream.job", "search_read", [["id", "=", job]], ["status", "state"]
        )
        return found

    with courier(answer_late) as (url, _calls):
        _probe, job = user.call("chaos.probe", "start", [], "catches_everything", url)
        assert running.wait(60), world.worker_log()[-2000:]
        deadline = time.monotonic() + 30
        while not (found := shown()):
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.05)
        enough.set()
    assert found[0]["state"] == "pending"
    assert found[0]["status"] == "running"
    with psycopg.connect(replica.dsn(DATABASE)) as look:
        odoo = "SELECT count(*) > 0, pg_is_in_recovery() FROM pg_stat_activity WHERE usename = 'odoo'"
        assert look.execute(odoo).fetchone() == (True, True)
