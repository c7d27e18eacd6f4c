"""Test the database connection that a child keeps from job to job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from sidestream.broker.protocol import Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.reference import row_reference
from sidestream.store import schema
from tests.odoo.conftest import CHAOS, Shop
from tests.support.odoo import OdooWorld

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """A world with one child, so that each job meets what the previous one left."""
    settings = {"lease": 3, "renew_interval": 1, "recovery_period": 1, "children": 1}
    world = OdooWorld(
        ("sidestream", "sidestream_chaos"),
        base=("base", "web"),
        demo_data=False,
        addon_paths=[CHAOS],
        settings=settings,
        fsync=False,
    )
    with world:
        made = Shop(world)
        made.run("add")  # the child has its connection, and Redis its generation
        yield made


def test_a_reference_from_before_a_restore_runs_nothing(shop: Shop) -> None:
    """A reference that names another method than the row is replaced by the row's own."""
    probe, job = shop.user.call("chaos.probe", "start", [], "add", delay=3600)
    broker = RedisBroker(shop.world.redis_url(), lease_ms=3000)
    broker.generation()
    with shop.world.connect() as connection:
        own, stale = (_publication(connection, job, name) for name in ("add", "breaks_a_rule"))
        connection.execute("UPDATE sidestream_job SET run_at = now() AT TIME ZONE 'UTC' WHERE id = %s", [job])
        broker.publish([stale], force=True)
        deadline = time.monotonic() + 60
        while f"had the id of job {job} (chaos.probe.add)" not in shop.world.worker_log():
            assert time.monotonic() < deadline, shop.world.worker_log()[-2000:]
            time.sleep(0.05)
        broker.discard(own)  # Redis still has the original time
        assert shop.end(probe, job) == {"count": 1, "state": "done", "error": ""}
        tried = connection.execute("SELECT attempts FROM sidestream_job WHERE id = %s", [job]).fetchone()
    broker.close()
    assert tried == (0,)


def _publication(connection: psycopg.Connection[Any], job: int, method: str) -> Publication:
    database = schema.identify(connection.cursor())
    [group] = connection.execute("SELECT group_name FROM sidestream_job WHERE id = %s", [job]).fetchone() or (None,)
    reference = row_reference(database.tag, job, f"chaos.probe.{method}", None, group).pack()
    return Publication(reference, lane(database.tag, "default"))


def test_a_worker_runs_nothing_when_its_database_becomes_a_copy(shop: Shop) -> None:
    """The children's connections are lost, and the same address now leads to a copy."""
    broker = RedisBroker(shop.world.redis_url(), lease_ms=3000)
    broker.generation()
    with shop.world.connect() as connection:
        before = connection.execute("SELECT home FROM sidestream_meta").fetchone()
        probe, job = _exchange_database(shop, connection, "home = 'elsewhere'")
        deadline = time.monotonic() + 60
        while "is a copy, or was restored elsewhere" not in shop.world.worker_log():
            assert time.monotonic() < deadline, shop.world.worker_log()[-2000:]
            time.sleep(0.05)
        assert shop.user.call("chaos.probe", "look", [], probe, job) == {"count": 0, "state": "pending", "error": ""}
        connection.execute("UPDATE sidestream_meta SET home = %s", before)
        while not broker.discard(_publication(connection, job, "add")):  # else it is offered again after 30 s
            assert time.monotonic() < deadline, "a worker still holds it"
            time.sleep(0.05)
    broker.close()
    assert shop.end(probe, job) == {"count": 1, "state": "done", "error": ""}


def test_a_worker_starts_anew_when_its_database_is_adopted(shop: Shop) -> None:
    with shop.world.connect() as connection:
        probe, job = _exchange_database(shop, connection, f"database_uuid = '{uuid4()}'")
    assert shop.end(probe, job) == {"count": 1, "state": "done", "error": ""}
    assert "This database was adopted" in shop.world.worker_log()


def _exchange_database(shop: Shop, connection: psycopg.Connection[Any], change: str) -> tuple[int, int]:
    """Change the database's identity and cut the children's connections while a job waits for modules."""
    modules = "UPDATE ir_module_module SET state = %s WHERE name = 'sidestream_chaos'"
    waits = "SELECT FROM sidestream_job WHERE id = %s AND reason = 'upgrading'"
    connection.execute(modules, ["to upgrade"])
    probe, job = shop.user.call("chaos.probe", "start", [], "add")
    deadline = time.monotonic() + 60
    while not connection.execute(waits, [job]).fetchall():
        assert time.monotonic() < deadline, shop.world.worker_log()[-2000:]
        time.sleep(0.05)
    connection.execute(f"UPDATE sidestream_meta SET {change}")  # type: ignore[arg-type]
    connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE application_name ~ '^sidestream/.*/[0-9]+$'"
    )
    connection.execute(modules, ["installed"])
    return probe, job


def _looked(shop: Shop, method: str = "looks") -> list[str]:
    probe, job = shop.user.call("chaos.probe", "start", [], method)
    assert shop.end(probe, job)["state"] == "done"
    with shop.world.connect() as connection:
        [found] = connection.execute("SELECT name FROM chaos_probe WHERE id = %s", [probe]).fetchone() or ("",)
    return str(found).split()


@pytest.mark.parametrize(("fails", "state"), [(False, "done"), (True, "failed")], ids=["committed", "rolled back"])
def test_session_state_of_a_job_does_not_reach_the_next_job(shop: Shop, fails: bool, state: str) -> None:
    before = _looked(shop)
    assert before[:3] == ["0", "False", "0"]
    assert _looked(shop)[3] == before[3], "the connection is kept from job to job"
    assert shop.run("leaves", fails)["state"] == state
    assert _looked(shop)[:3] == ["0", "False", "0"]


def test_an_action_that_commits_in_parts_keeps_its_session_until_it_ends(shop: Shop) -> None:
    # Its own lock, and the one on its job, which the guard connection holds.
    assert _looked(shop, "leaves_to_itself")[:3] == ["77s", "True", "1"]
    assert _looked(shop)[:3] == ["0", "False", "0"]
