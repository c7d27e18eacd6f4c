"""Test Odoo's prefork mode, and module changes while jobs are pending."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from sidestream.job.job import Job
from sidestream.store.insert import insert
from tests.odoo.browser import Session
from tests.odoo.conftest import CHAOS
from tests.support.odoo import DATABASE, OdooWorld

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world() -> Iterator[OdooWorld]:
    world = OdooWorld(
        ("sidestream", "sidestream_chaos"), base=("base", "web"), demo_data=False, addon_paths=[CHAOS], fsync=False
    )
    with world:
        yield world


@pytest.fixture(scope="module")
def user(world: OdooWorld) -> Session:
    """A user of Odoo in prefork mode, where each request may reach another process."""
    return Session(world.serve(workers=2).url, DATABASE, "admin", "admin")


def ended(user: Session, probe: int, job: int) -> str:
    deadline = time.monotonic() + 60
    while (state := user.call("chaos.probe", "look", [], probe, job)["state"]) == "pending":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return str(state)


def test_prefork_processes_publish_at_once(world: OdooWorld, user: Session) -> None:
    worker = world.work()
    started = [user.call("chaos.probe", "start", [], "add") for _ in range(20)]
    assert {ended(user, *one) for one in started} == {"done"}
    took = []
    for _ in range(10):
        began = time.monotonic()
        assert ended(user, *user.call("chaos.probe", "start", [], "add")) == "done"
        took.append(time.monotonic() - began)
    assert sorted(took)[5] < 1, "the reconciler would have needed longer: these were published by the relay"
    worker.terminate()
    assert worker.wait(30) == 0


def test_sidestream_is_not_uninstalled_while_jobs_are_pending(world: OdooWorld, user: Session) -> None:
    probe, job = user.call("chaos.probe", "start", [], "add", delay=3600)
    [module] = user.call("ir.module.module", "search", [["name", "=", "sidestream"]])
    said = user.fails("ir.module.module", "button_immediate_uninstall", [module])
    assert "background jobs are not finished yet" in said
    assert user.call("chaos.probe", "look", [], probe, job)["state"] == "pending"
    user.call("sidestream.job", "action_cancel", [job])


def test_uninstallation_waits_for_jobs_that_are_enqueued_meanwhile(world: OdooWorld, user: Session) -> None:
    """The uninstallation waits for uncommitted jobs before it drops the tables."""
    [module] = user.call("ir.module.module", "search", [["name", "=", "sidestream"]])
    waits = "SELECT count(*) FROM pg_locks WHERE relation = 'sidestream_job'::regclass AND NOT granted"
    with world.connect() as look, world.connect() as somebody, ThreadPoolExecutor(1) as pool:
        with somebody.transaction(), somebody.cursor() as cursor:
            [stored] = insert(cursor, [Job("chaos.probe.add")])
            said = pool.submit(user.fails, "ir.module.module", "button_immediate_uninstall", [module])
            deadline = time.monotonic() + 60
            while look.execute(waits).fetchone() != (1,) and not said.done():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert "1 background jobs are not finished yet" in said.result(60)
        left = look.execute("SELECT state FROM sidestream_job WHERE id = %s", [stored.id]).fetchone()
        module_state = look.execute("SELECT state FROM ir_module_module WHERE name = 'sidestream'").fetchone()
    assert (left, module_state) == (("pending",), ("installed",))
    user.call("sidestream.job", "action_cancel", [stored.id])


def state_of(look: psycopg.Connection[Any], module: str = "sidestream_chaos") -> str:
    row = look.execute("SELECT state FROM ir_module_module WHERE name = %s", [module]).fetchone()
    assert row is not None
    return str(row[0])


def until_the_worker_waits(world: OdooWorld, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while "are being installed, upgraded or removed" not in world.worker_log():
        assert time.monotonic() < deadline, world.worker_log()[-2000:]
        assert worker.poll() is None, world.worker_log()[-2000:]
        time.sleep(0.05)


def test_a_worker_that_starts_while_modules_change_waits_and_upgrades_nothing(world: OdooWorld, user: Session) -> None:
    """An interrupted upgrade leaves its mark, and the next process that loads Odoo would continue it."""
    marker = "base.partially_updated_database"
    probe, job = user.call("chaos.probe", "start", [], "add")
    with world.connect() as look:
        look.execute("UPDATE ir_module_module SET state = 'to upgrade' WHERE name = 'sidestream_chaos'")
        look.execute("INSERT INTO ir_config_parameter (key, value) VALUES (%s, '1')", [marker])
        worker = world.work()
        until_the_worker_waits(world, worker)
        assert state_of(look) == "to upgrade"
        look.execute("UPDATE ir_module_module SET state = 'installed' WHERE name = 'sidestream_chaos'")
        deadline = time.monotonic() + 60
        while "is not finished" not in world.worker_log():
            assert time.monotonic() < deadline, world.worker_log()[-2000:]
            time.sleep(0.05)
        assert look.execute("DELETE FROM ir_config_parameter WHERE key = %s", [marker]).rowcount == 1
    assert ended(user, probe, job) == "done"
    worker.terminate()
    assert worker.wait(30) == 0


def test_a_worker_that_cannot_load_half_upgraded_modules_waits_and_leaves_their_states(
    world: OdooWorld, user: Session
) -> None:
    """A failed load must not reset the module states of a running upgrade."""
    probe, job = user.call("chaos.probe", "start", [], "add")
    note = world.folder / "home" / "breaks-while-loading"
    note.write_text(world.postgres.dsn(DATABASE))
    note.chmod(0o666)
    note.parent.chmod(0o777)
    with world.connect() as look:
        worker = world.work()
        until_the_worker_waits(world, worker)
        assert not note.exists()
        assert state_of(look) == "to upgrade"
        look.execute("UPDATE ir_module_module SET state = 'installed' WHERE name = 'sidestream_chaos'")
    assert ended(user, probe, job) == "done"
    worker.terminate()
    assert worker.wait(30) == 0


def test_a_worker_that_waits_for_modules_stops_at_sigterm(world: OdooWorld, user: Session) -> None:
    with world.connect() as look:
        look.execute("UPDATE ir_module_module SET state = 'to upgrade' WHERE name = 'sidestream_chaos'")
        worker = world.work()
        until_the_worker_waits(world, worker)
        worker.terminate()
        assert worker.wait(10) == 0
        look.execute("UPDATE ir_module_module SET state = 'installed' WHERE name = 'sidestream_chaos'")
    assert "is killed" not in world.worker_log()


def test_jobs_of_an_uninstalled_module_stay_with_their_reason(world: OdooWorld, user: Session) -> None:
    _, job = user.call("chaos.probe", "start", [], "add", delay=2)
    [module] = user.call("ir.module.module", "search", [["name", "=", "sidestream_chaos"]])
    user.call("ir.module.module", "button_immediate_uninstall", [module])
    worker = world.work()
    with world.connect() as connection:
        deadline = time.monotonic() + 40
        reason = None
        while reason is None and time.monotonic() < deadline:
            time.sleep(0.05)
            state, reason = connection.execute(
                "SELECT state, reason FROM sidestream_job WHERE id = %s", [job]
            ).fetchone() or (None, None)
    assert state == "pending"
    assert reason is not None
    assert reason == "unrouted"
    worker.terminate()
    assert worker.wait(30) == 0
