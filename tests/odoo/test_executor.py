"""Test faulty actions and disturbances: each has a clear message, and nothing is lost or done twice."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
import redis

from sidestream.broker.protocol import Publication, lane
from sidestream.broker.redis import keys
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.reference import row_reference
from sidestream.store import schema
from tests.odoo.browser import OdooError, Session
from tests.odoo.conftest import CHAOS, Shop
from tests.support.odoo import DATABASE, OdooWorld, odoo_command

pytestmark = pytest.mark.timeout(300)


def test_an_action_runs_and_is_done_once(shop: Shop) -> None:
    assert shop.run("add") == {"count": 1, "state": "done", "error": ""}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("commits", "tried to commit the transaction of its job"),
        ("rolls_back", "tried to roll back the transaction of its job"),
        ("closes", "tried to close the transaction of its job"),
        ("swallows", "continued after a PostgreSQL error"),
        ("swallows_and_enqueues", "continued after a PostgreSQL error"),
        ("asks_outside", "used the database in its second step"),
        ("yields_rubbish", "expected a function"),
        ("is_made_to_yield", "returned a generator, so none of its code ran; expected a method without yield"),
        ("is_made_to_return", "returned True; expected a method that yields its call"),
        ("gives_up", "This parcel has no address; correct the order, then Retry."),
        ("breaks_a_rule", "The operation cannot be completed: A probe counts to a thousand at most."),
        ("redirects", "RedirectWarning: There is no chart of accounts."),
        ("too_long", "ran longer than its soft limit of 0.3 s"),
        ("far_too_long", "hard limit"),
        ("loses_its_session", "Its PostgreSQL session ended while it ran"),
        ("loses_its_key", "lost the connection that holds its locks"),
    ],
)
def test_a_forbidden_action_is_reported_and_rolled_back(shop: Shop, method: str, said: str) -> None:
    found = shop.run(method)
    assert found["state"] == "failed"
    assert said in found["error"]
    assert found["count"] == 0, "what it wrote is rolled back"
    assert shop.run("add")["state"] == "done", "the worker goes on"


@pytest.mark.parametrize(
    "kind", ["UserError", "ValidationError", "AccessError", "MissingError", "RedirectWarning", "TypeError"]
)
def test_a_business_error_ends_the_job_at_its_first_attempt(shop: Shop, kind: str) -> None:
    probe, job = shop.user.call("chaos.probe", "start", [], "refuses", kind)
    found = shop.end(probe, job)
    assert (found["state"], found["count"]) == ("failed", 0)
    with shop.world.connect() as connection:
        assert connection.execute("SELECT attempts FROM sidestream_job WHERE id = %s", [job]).fetchone() == (1,)


def test_a_failed_job_calls_the_hook_of_an_addon(shop: Shop) -> None:
    _, job = shop.user.call("chaos.probe", "start", [], "gives_up")
    deadline = time.monotonic() + 60
    with shop.world.connect() as connection:
        while not (
            told := connection.execute("SELECT count FROM chaos_probe WHERE name = %s", [f"failed {job} 1"]).fetchall()
        ):
            assert time.monotonic() < deadline, shop.world.worker_log()[-2000:]
            time.sleep(0.05)
    assert told == [(1,)]
    assert f"Job {job} chaos.probe.gives_up has failed" in shop.world.worker_log()


def test_a_hook_that_raises_after_the_commit_repeats_nothing(shop: Shop) -> None:
    signals = "SELECT max(id) FROM orm_signaling_default"
    with shop.world.connect() as connection:
        before = connection.execute(signals).fetchall()
        assert shop.run("hook_raises") == {"count": 1, "state": "done", "error": ""}
        deadline = time.monotonic() + 20  # the hook runs after the commit that made the job done
        while connection.execute(signals).fetchall() == before:
            assert time.monotonic() < deadline, "no hook ran after the job's commit"
            time.sleep(0.02)
    assert shop.run("hook_raises_between") == {"count": 2, "state": "done", "error": ""}
    while shop.world.worker_log().count("a hook after its commit failed; the job is not repeated") < 2:
        assert time.monotonic() < deadline, shop.world.worker_log()[-2000:]
        time.sleep(0.02)


def test_writes_of_a_hook_after_the_commit_are_discarded(shop: Shop) -> None:
    """An open cursor's transaction would become part of the next job."""
    probes = [shop.user.call("chaos.probe", "start", [], "hook_writes") for _ in range(4)]
    assert {shop.end(*one)["count"] for one in probes} == {1}
    with shop.world.connect() as connection:
        deadline = time.monotonic() + 10  # the hook runs after the commit that the test saw
        while left := connection.execute(
            "SELECT query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' "
            "AND application_name LIKE 'sidestream/%'"
        ).fetchall():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    assert all(shop.run("add")["count"] == 1 for _ in range(4))
    assert {shop.user.call("chaos.probe", "look", [], *one)["count"] for one in probes} == {1}


def test_a_follow_up_job_has_the_same_requester(shop: Shop) -> None:
    probe, job = shop.user.call("chaos.probe", "start", [], "follows")
    assert shop.end(probe, job)["state"] == "done"
    with shop.world.connect() as connection:
        asked = connection.execute(
            "SELECT user_id, requested_by FROM sidestream_job WHERE id >= %s ORDER BY id LIMIT 2", [job]
        ).fetchall()
        [admin] = connection.execute("SELECT id FROM res_users WHERE login = 'admin'").fetchone() or (0,)
    assert asked == [(1, admin), (1, admin)]


def test_a_failed_job_is_retried_by_its_button(shop: Shop) -> None:
    probe, job = shop.user.call("chaos.probe", "start", [], "gives_up")
    shop.end(probe, job)
    shop.user.call("sidestream.job", "action_retry", [job])
    found = shop.end(probe, job)
    assert found["state"] == "failed"
    with shop.world.connect() as connection:
        rows = connection.execute("SELECT attempts, forgiven FROM sidestream_job WHERE id = %s", [job]).fetchone()
    assert rows == (2, 1)


def test_a_scheduled_job_is_run_now_or_cancelled_by_its_button(shop: Shop) -> None:
    probe, job = shop.user.call("chaos.probe", "start", [], "add", delay=3600)
    shop.user.call("sidestream.job", "action_run_now", [job])
    assert shop.end(probe, job)["count"] == 1
    probe, job = shop.user.call("chaos.probe", "start", [], "add", delay=3600)
    shop.user.call("sidestream.job", "action_cancel", [job])
    assert shop.end(probe, job) == {"count": 0, "state": "cancelled", "error": ""}


def test_the_sessions_of_children_carry_their_names(shop: Shop) -> None:
    shop.run("add")
    with shop.world.connect() as connection:
        names = {name for (name,) in connection.execute("SELECT application_name FROM pg_stat_activity")}
    assert any(name.startswith("sidestream/") and name[-1].isdigit() for name in names), names


def test_a_changed_registry_renews_the_zygote_and_loses_nothing(shop: Shop) -> None:
    before = shop.run("add")
    with shop.world.connect() as connection:
        connection.execute("INSERT INTO orm_signaling_registry DEFAULT VALUES")
    assert before == shop.run("add") == {"count": 1, "state": "done", "error": ""}
    assert "The application has changed and is loaded again." in shop.world.worker_log()


def test_jobs_wait_while_modules_change_and_run_afterwards(shop: Shop) -> None:
    with shop.world.connect() as connection:
        connection.execute("UPDATE ir_module_module SET state = 'to upgrade' WHERE name = 'sidestream_chaos'")
        probe, job = shop.user.call("chaos.probe", "start", [], "add")
        deadline = time.monotonic() + 30
        while not (reason := _reason(connection, job)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert reason == "upgrading"
        connection.execute("UPDATE ir_module_module SET state = 'installed' WHERE name = 'sidestream_chaos'")
    assert shop.end(probe, job) == {"count": 1, "state": "done", "error": ""}


@contextmanager
def courier(on_call: Callable[[list[str]], None] = lambda calls: None) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server and its requests; ``on_call`` runs before each answer."""
    calls: list[str] = []

    class Courier(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            calls.append(self.path)
            on_call(calls)
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Courier) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", calls
        finally:
            server.shutdown()


def test_no_call_is_made_without_holding_the_key(shop: Shop, tmp_path: Path) -> None:
    """The connection that holds the key is lost in the first step, so another job of that key may run."""
    once = shop.world.folder / f"once-{tmp_path.name}"
    with courier() as (url, calls):
        probe, job = shop.user.call(
            "chaos.probe", "start", [], "calls_without_its_key", url, str(once), key=f"account {tmp_path.name}"
        )
        assert shop.end(probe, job) == {"count": 1, "state": "done", "error": ""}
        assert once.read_text() == "cut 1\nbegun again\n"
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("method", "paused", "done"), [("calls", 0, 1), ("catches_everything", 1, 12)], ids=["three steps", "parts"]
)
def test_a_job_waits_for_module_changes_that_begin_during_its_call(
    shop: Shop, method: str, paused: int, done: int
) -> None:
    """The rest of the job would run with the old modules. The job starts again and repeats its call with the same key.

    An action that goes on after whatever a commit raises is stopped too.
    """
    change = "UPDATE ir_module_module SET state = %s WHERE name = 'sidestream_chaos'"

    def upgrade(calls: list[str]) -> None:
        if len(calls) == 1:
            connection.execute(change, ["to upgrade"])

    with shop.world.connect() as connection, courier(upgrade) as (url, calls):
        probe, job = shop.user.call("chaos.probe", "start", [], method, url)
        deadline = time.monotonic() + 60
        while _reason(connection, job) != "upgrading":
            assert time.monotonic() < deadline, _reason(connection, job)
            time.sleep(0.05)
        assert shop.user.call("chaos.probe", "look", [], probe, job) == {
            "count": paused,
            "state": "pending",
            "error": "",
        }
        connection.execute(change, ["installed"])
        assert shop.end(probe, job) == {"count": done, "state": "done", "error": ""}
    assert len(calls) == 2
    assert method != "calls" or (len(calls[0]) > 40 and calls[0] == calls[1]), calls


def _reason(connection: psycopg.Connection[Any], job: int) -> str:
    row = connection.execute("SELECT coalesce(reason, '') FROM sidestream_job WHERE id = %s", [job]).fetchone()
    assert row is not None
    return str(row[0])


def test_modules_are_upgraded_installed_and_uninstalled_while_jobs_run(shop: Shop) -> None:
    """Nothing is lost or done twice when modules change while a worker is busy."""
    changes = {
        "upgrade": lambda: shop.world.install("sidestream_chaos", upgrade=True),
        "install": lambda: shop.world.install("base_import"),
        "uninstall": lambda: shop.user.call("ir.module.module", "button_immediate_uninstall", [module]),
    }
    [module] = shop.user.call("ir.module.module", "search", [["name", "=", "base_import"]])
    times = {}
    with Producer(shop) as producer:
        for name, change in changes.items():
            producer.wait_until_busy()
            began = datetime.now(UTC)
            change()
            times[name] = (began, datetime.now(UTC))
        producer.wait_until_busy()
    assert {tuple(shop.end(*one).values()) for one in producer.started} == {(1, "done", "")}
    with shop.world.connect() as connection:
        wrong = "SELECT count, name FROM chaos_probe WHERE name = 'works' AND count <> 1"
        assert connection.execute(wrong).fetchall() == [], "of a call that was refused too"
        for name, (began, ended) in times.items():
            ran, waited = connection.execute(
                "SELECT count(*) FILTER (WHERE started_at < %(began)s AND ended_at > %(began)s - interval '1 s'), "
                "count(*) FILTER (WHERE created_at < %(ended)s AND ended_at > %(ended)s) "
                "FROM sidestream_job WHERE action = 'chaos.probe.works'",
                {"began": began.replace(tzinfo=None), "ended": ended.replace(tzinfo=None)},
            ).fetchone() or (0, 0)
            assert ran, f"no job ran in the second before the {name} began"
            assert waited, f"no job waited when the {name} ended"


class Producer:
    """Enqueue jobs of 0.4 s faster than two children run them, up to a limit of pending jobs."""

    MOST_OPEN = 50

    def __init__(self, shop: Shop) -> None:
        self.started: list[tuple[int, int]] = []
        self._shop = shop
        self._user = Session(shop.server.url, DATABASE, "admin", "admin")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def wait_until_busy(self) -> None:
        """Wait until each child has done more jobs and others are waiting."""
        before, deadline = self._count("state = 'done'"), time.monotonic() + 60
        while not (self._count("state = 'done'") > before + 4 and self._count("state = 'pending'") > 3):
            assert time.monotonic() < deadline, self._shop.world.worker_log()[-2000:]
            time.sleep(0.05)

    def _count(self, which: str) -> int:
        with self._shop.world.connect() as connection:
            found = connection.execute(
                f"SELECT count(*) FROM sidestream_job WHERE action = 'chaos.probe.works' AND {which}"
            ).fetchone()
        assert found is not None
        return int(found[0])

    def _run(self) -> None:
        while not self._end.wait(0.15):  # the pace of the load
            if self._count("state = 'pending'") >= self.MOST_OPEN:
                continue
            try:
                probe, job = self._user.call("chaos.probe", "start", [], "works", 0.4)
            except (OdooError, OSError):  # a server that loads its registry refuses some calls
                continue
            self.started.append((probe, job))


def test_a_worker_says_which_database_it_cannot_load(shop: Shop) -> None:
    with _start_worker(shop.world, "nowhere") as waiting:  # it waits, because the database may be created later
        assert waiting.stderr is not None
        assert 'database "nowhere" does not exist' in waiting.stderr.readline()
        waiting.terminate()
    said = _worker_says(shop.world, "postgres")
    assert "The addon 'sidestream' is not installed in the database 'postgres'" in said


def test_a_reference_to_another_database_is_kept_and_not_run(shop: Shop) -> None:
    """Its number must not be taken for one of our rows. The reference waits and is not lost."""
    with shop.world.connect() as connection:
        database = schema.identify(connection.cursor())
    broker = RedisBroker(shop.world.redis_url(), lease_ms=3000)
    deadline = time.monotonic() + 20
    while not broker.generation().number:  # until the worker begins one
        assert time.monotonic() < deadline, "no generation began"
        time.sleep(0.05)
    foreign = row_reference(bytes(8), 1, "chaos.probe.add", None).pack()
    broker.publish([Publication(foreign, lane(database.tag, "default"))])
    with redis.Redis.from_url(shop.world.redis_url()) as client:
        while not client.hexists(f"{keys.PREFIX}attempts", foreign):
            assert time.monotonic() < deadline, "it was not released"
            time.sleep(0.05)
    while not broker.discard(Publication(foreign, lane(database.tag, "default"))):  # false while a worker looks at it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    broker.close()


def test_a_worker_refuses_a_copy_until_somebody_adopts_it(shop: Shop) -> None:
    shop.world.postgres.create_database("copied")
    dump = ["pg_dump", "-h", "127.0.0.1", "-p", str(shop.world.postgres.port), "-U", "postgres", DATABASE]
    load = ["psql", "-q", "-h", "127.0.0.1", "-p", str(shop.world.postgres.port), "-U", "postgres", "copied"]
    with subprocess.Popen(dump, stdout=subprocess.PIPE) as dumping:
        subprocess.run(load, stdin=dumping.stdout, stdout=subprocess.DEVNULL, check=True)
    assert "is a copy, or was restored elsewhere" in _worker_says(shop.world, "copied")
    command = [
        odoo_command()[0],
        "-m",
        "sidestream",
        "--database-url",
        shop.world.postgres.dsn("copied"),
        "db",
        "adopt",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=shop.world.environment())
    assert "This database is now" in done.stdout


def test_a_worker_without_the_addon_says_what_to_install() -> None:
    with OdooWorld((), base=("base", "web"), demo_data=False, addon_paths=[CHAOS], fsync=False) as world:
        said = _worker_says(world, DATABASE)
        assert f"is not installed in the database '{DATABASE}'; run: odoo -c {world.config}" in said
        assert said.rstrip().endswith("-i sidestream")


def _start_worker(world: OdooWorld, database: str) -> subprocess.Popen[str]:
    command = [odoo_command()[0], "-m", "sidestream", "--odoo-config", str(world.config), "--odoo-database", database]
    return subprocess.Popen([*command, "worker", "run"], stderr=subprocess.PIPE, text=True, env=world.environment())


def _worker_says(world: OdooWorld, database: str) -> str:
    with _start_worker(world, database) as refused:
        said = refused.communicate(timeout=60)[1]
    assert refused.returncode != 0
    return said
