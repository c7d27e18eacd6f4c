"""Test what the acquire statement reads with a job's row, and its prepared statements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.odoo.conftest import Shop

pytestmark = pytest.mark.timeout(300)

MANY = 300
"""More records than the acquire statement checks."""


@pytest.fixture
def database(shop: Shop) -> Iterator[psycopg.Connection[Any]]:
    with shop.world.connect() as connection:
        yield connection


def run_now(shop: Shop, job: int) -> dict[str, Any]:
    shop.user.call("sidestream.job", "action_run_now", [job])
    return shop.end(0, job)


@pytest.mark.parametrize("count", [1, 3, MANY])
def test_a_job_whose_records_were_all_deleted_gives_up(
    shop: Shop, database: psycopg.Connection[Any], count: int
) -> None:
    probes, job = shop.user.call("chaos.probe", "start_many", [], count, "counts")
    database.execute("DELETE FROM chaos_probe WHERE id = ANY(%s)", [probes])
    found = run_now(shop, job)
    assert found["state"] == "failed"
    assert f"were deleted before it ran: Probe {', '.join(map(str, probes[:5]))}." in found["error"]


@pytest.mark.parametrize("count", [3, MANY])
def test_a_job_runs_on_the_records_that_are_left(shop: Shop, database: psycopg.Connection[Any], count: int) -> None:
    probes, job = shop.user.call("chaos.probe", "start_many", [], count, "counts")
    database.execute("DELETE FROM chaos_probe WHERE id = %s", [probes[1]])
    assert run_now(shop, job)["state"] == "done"
    names = database.execute("SELECT DISTINCT name FROM chaos_probe WHERE id = ANY(%s)", [probes]).fetchall()
    assert names == [(f"one of {count - 1}",)]


@pytest.mark.parametrize(("active", "said"), [(None, "was deleted"), (False, "Gone is archived")])
def test_a_job_of_a_deleted_or_archived_user_fails(
    shop: Shop, database: psycopg.Connection[Any], active: bool | None, said: str
) -> None:
    _probe, job = shop.user.call("chaos.probe", "start", [], "who", delay=3600)
    user = 999_999
    if active is not None:
        user = shop.user.call("res.users", "create", {"name": "Gone", "login": "gone", "active": active})
    database.execute("UPDATE sidestream_job SET user_id = %s WHERE id = %s", [user, job])
    found = run_now(shop, job)
    assert found["state"] == "failed"
    assert said in found["error"]


def test_archiving_and_unarchiving_a_user_takes_effect_immediately(
    shop: Shop, database: psycopg.Connection[Any]
) -> None:
    """The worker must not use a stale cache."""
    user = shop.user.call("res.users", "create", {"name": "Back", "login": "back"})
    for active, state in ((True, "done"), (False, "failed"), (True, "done")):
        shop.user.call("res.users", "write", [user], {"active": active})
        _probe, job = shop.user.call("chaos.probe", "start", [], "who", delay=3600)
        company = database.execute("SELECT company_id FROM res_users WHERE id = %s", [user]).fetchone()
        assert company is not None
        database.execute(
            "UPDATE sidestream_job SET user_id = %s, context = '{}', company_id = %s WHERE id = %s",
            [user, company[0], job],
        )
        assert run_now(shop, job)["state"] == state


def test_a_dropped_table_fails_the_job_but_not_the_child(shop: Shop, database: psycopg.Connection[Any]) -> None:
    _probe, job = shop.user.call("chaos.probe", "start", [], "add", delay=3600)
    database.execute("ALTER TABLE chaos_probe RENAME TO chaos_away")
    try:
        shop.user.call("sidestream.job", "action_run_now", [job])
        error = f"{_end(database, job)}"
    finally:
        database.execute("ALTER TABLE chaos_away RENAME TO chaos_probe")
    assert "chaos_probe" in error
    crashes = database.execute("SELECT crashes FROM sidestream_job WHERE id = %s", [job]).fetchone()
    assert crashes == (0,)
    assert shop.run("add")["state"] == "done"


def test_an_action_that_drops_prepared_statements_is_done_once(shop: Shop) -> None:
    for _ in range(4):  # in both children, before and after they prepare statements
        assert shop.run("discards") == {"count": 1, "state": "done", "error": ""}
        assert shop.run("add")["state"] == "done"


def test_a_changed_table_needs_no_restart(shop: Shop, database: psycopg.Connection[Any]) -> None:
    """A module's upgrade changes a table after the children prepared their statements."""
    for _ in range(12):
        assert shop.run("add")["state"] == "done"
    database.execute("ALTER TABLE sidestream_job ALTER COLUMN context TYPE varchar")
    try:
        assert [shop.run("add")["state"] for _ in range(4)] == ["done"] * 4
    finally:
        database.execute("ALTER TABLE sidestream_job ALTER COLUMN context TYPE text")
    assert [shop.run("add")["state"] for _ in range(4)] == ["done"] * 4


def test_children_share_what_was_loaded(shop: Shop) -> None:
    assert shop.run("add")["state"] == "done"
    [zygote] = [one for one in psutil.Process(shop.worker.pid).children() if one.children()]
    for child in zygote.children():
        size = dict.fromkeys(("Rss", "Private_Dirty"), 0)
        for line in Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            size[name] = int(rest.split()[0])
        assert size["Private_Dirty"] < size["Rss"] / 4, size


def _end(database: psycopg.Connection[Any], job: int) -> str:
    """Wait until the job is over, without asking Odoo; return its error."""
    database.execute("SET statement_timeout = '60s'")
    query = """DO $$ DECLARE found text; BEGIN LOOP
        SELECT state INTO found FROM sidestream_job WHERE id = {job};
        EXIT WHEN found <> 'pending'; PERFORM pg_sleep(0.02); END LOOP; END $$"""
    database.execute(query.format(job=int(job)))  # type: ignore[arg-type]  # made of a number
    row = database.execute("SELECT error FROM sidestream_job WHERE id = %s", [job]).fetchone()
    assert row is not None
    return str(row[0])
