"""The real command, as a shell runs it: what it prints, what it leaves in the database, and how it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

from sidestream.broker.protocol import lane
from sidestream.cli.main import app
from sidestream.job.reference import NO_TAG8, Reference
from sidestream.job.rules import Rules
from sidestream.settings import Settings
from sidestream.store import schema
from sidestream.wiring.client import build_broker
from tests.acceptance.conftest import Finished, Run, answer, refused
from tests.support.servers import PostgresServer, RedisServer

SIDESTREAM = str(Path(sys.executable).with_name("sidestream"))


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statement)  # type: ignore[call-overload]


# -- without any server ----------------------------------------------------------------------------------------------


def test_help_is_quick_and_names_every_command() -> None:
    fastest = 60.0
    for _ in range(3):
        before = os.times()
        done = subprocess.run([SIDESTREAM, "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        fastest = min(fastest, spent)
    for command in ("enqueue", "jobs", "job", "failed", "queue", "limit", "worker", "db"):
        assert command in done.stdout
    assert fastest < 1.5  # of processor time, 0.25 s on an idle machine; these cores are shared


def commands(found: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every command with its words."""
    if not hasattr(found, "commands"):
        yield words, found
        return
    for name, one in found.commands.items():
        yield from commands(one, (*words, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_in_one_sentence(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0
    assert f"Usage: sidestream {' '.join(words)}" in done.stdout
    for text in [COMMANDS[words].help, *(getattr(one, "help", None) for one in COMMANDS[words].params)]:
        assert text
        assert text.endswith(".")
        assert ". " not in text
        assert "\n" not in text


def test_every_command_is_on_the_reference_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    for words in COMMANDS:
        assert re.search(rf"`(sidestream )?{' '.join(words)}\b", page), words


def test_an_error_of_the_real_process_is_one_sentence_and_its_code(database: str, tmp_path: Path) -> None:
    environment = {**os.environ, "SIDESTREAM_DATABASE_URL": database, "SIDESTREAM_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [SIDESTREAM, "jobs"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    refused(Finished(done.returncode, done.stdout, done.stderr), 3, "sidestream db init")


def test_help_imports_neither_drivers_nor_settings() -> None:
    script = (
        "import sys; from sidestream.cli import main; "
        "print([name for name in ('psycopg', 'redis', 'pydantic', 'sidestream.store', 'sidestream.wiring.client') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").stdout.startswith("sidestream 0.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["enqueue", "a", "--arg", "el"], "--arg 'el' is not JSON"),
        (["enqueue", "a", "--arg", "NaN"], "not JSON: expected a finite number"),
        (["enqueue", "a", "--kwarg", "lang"], "not of the form NAME=JSON"),
        (["enqueue", "a", "--kwarg", "1x=2"], "not of the form NAME=JSON"),
        (["enqueue", "a", "--kwarg", "lang=el"], "--kwarg lang 'el' is not JSON"),
        (["enqueue", "a", "--run-at", "tomorrow"], "expected ISO 8601"),
        (["enqueue", "a", "--run-at", "2026-12-24T18:00:00"], "(--time-zone), or add an offset such as +00:00"),
        (
            ["enqueue", "a", "--expires-at", "9999-12-31T23:59:59"],
            "(--time-zone), or add an offset such as +00:00",
        ),
        (["enqueue", "a", "--delay", "99999999999999d"], "--delay '99999999999999d' is wrong: expected 0s to 36600d"),
        (
            ["enqueue", "a", "--key", ""],
            "The key '' is not allowed: expected 1 to 200 printable characters; leave it out",
        ),
        (
            ["enqueue", "a", "--priority", "abc"],
            "Invalid value for '--priority': 'abc'; expected 0 to 9; see 'sidestream",
        ),
        (["enqueue", "a", "--run-at", "2026-12-24T18:00:00Z", "--delay", "1"], "give one of them"),
        (["enqueue", "a", "--delay=-1"], "--delay '-1' is wrong: expected 0s to 36600d"),
        (["enqueue", "a", "--delay", "5 parsecs"], "--delay '5 parsecs' is wrong: expected a duration such as 15s"),
        (["enqueue", "a", "--expires-in", "soon"], "--expires-in 'soon' is wrong: expected a duration"),
        (["enqueue", "a", "--id", "x"], "--id is for --direct jobs"),
        (["enqueue", "a", "--id", "x", "--direct"], "is not a uuid"),
        (["enqueue", "a b"], "action name 'a b' is not allowed"),
        (["--odoo-config", os.devnull, "--odoo-database", "x", "enqueue", "a"], "not enqueued from here"),
        (["enqueue", "a", "--queue", "a b"], "queue name 'a b' is not allowed"),
        (["enqueue", "a", "--arg", json.dumps("x" * 66_000)], "larger than 64 KiB|more than 65536"),
        (["jobs", "--state", "closed"], "is not a state; expected pending, done, failed, cancelled"),
        (["jobs", "--limit", "0"], "Invalid value for '--limit': '0'; expected 1 to 1000"),
        (["jobs", "--limit", "abc"], "Invalid value for '--limit': 'abc'; expected 1 to 1000"),
        (["jobs", "--before", "99999999999999999999999"], "'--before': '99999999999999999999999'; expected 1 to 9223"),
        (["jobs", "--before", "9" * 5000], "expected 1 to 9223"),
        (["jobs", "--before", "-5"], "'--before': '-5'; expected 1 to 9223"),
        (["jobs", "--queue", "a b"], "queue name 'a b' is not allowed"),
        (["job", "show", "0"], "is not the id of a job"),
        (["job", "show", "9" * 5000], "is not the id of a job"),
        *(
            (["job", verb, "-1"], "'-1' is not the id of a job")
            for verb in ("show", "why", "cancel", "retry", "run-now")
        ),
        (["job", "priority", "1", "abc"], "Invalid value for 'PRIORITY': 'abc'; expected 0 to 9"),
        (["queue", "weight", "default", "abc"], "Invalid value for '[WEIGHT]': 'abc'; expected 0.01 to 1000"),
        (["worker", "run", "--children", "abc"], "Invalid value for '--children': 'abc'; expected 1 to 1024"),
        (["bench", "--jobs", "1"], "Invalid value for '--jobs': '1'; expected 100 to 100000"),
        (["--app", "nothing.here:actions", "enqueue", "a"], "cannot be imported"),
        (["--app", "nothing", "enqueue", "a"], "module:attribute"),
        (["--config", "nowhere.toml", "jobs"], "nowhere.toml does not exist"),
        (["--redis-url", "http://x", "jobs"], "redis://"),
        (["--redis-url", "redis://127.0.0.1:abc", "jobs"], "expected a port from 0 to 65535"),
        (["--database-url", "", "jobs"], "The setting database_url is wrong"),
        (["--app", "", "jobs"], "module:attribute"),
        (["--database-url", "postgresql://127.0.0.1:999999/x", "jobs"], 'invalid port number: "999999"); correct it'),
        (["--database-url", "postgresql://127.0.0.1/x?sslmode=no", "jobs"], 'invalid sslmode value: "no"); correct it'),
    ],
)
def test_wrong_input_is_one_sentence_and_code_2(ready: Run, words: list[str], said: str) -> None:
    done = ready(*words)
    refused(done, 2, next((part for part in said.split("|") if part in done.stderr), said))
    assert answer(ready("jobs", "--json")) == {"jobs": []}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'; see 'sidestream --help'."),
        (["job", "show"], "Missing argument 'ID'; see 'sidestream job show --help'."),
        (["jobs", "--what"], "No such option: --what"),
        (["jobs", "--limit"], "Option '--limit' requires an argument; see 'sidestream --help'."),
        (["jobs", "more"], "Got unexpected extra argument(s) (more); see 'sidestream jobs --help'."),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_code_2(run: Run, words: list[str], said: str) -> None:
    done = run(*words)
    refused(done, 2, said)
    assert done.stdout == ""


@pytest.mark.parametrize("words", [[], ["job"]])
def test_a_command_without_a_verb_shows_its_help(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage: sidestream" in done.stdout


@pytest.mark.parametrize("words", [["jobs"], ["jobs", "--json"], ["--help"], ["--version"]])
def test_output_that_cannot_be_written_is_one_sentence_and_code_1(ready: Run, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([SIDESTREAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    refused(Finished(done.returncode, "", done.stderr), 1, "The output cannot be written (No space left on device)")


def test_a_worker_does_not_wait_for_a_database_url_that_can_never_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from sidestream import Actions\nactions = Actions()\n")
    words = ["--database-url", "postgresql://127.0.0.1:999999/x", "--app", "app:actions", "worker", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "SIDESTREAM_CONFIG"}
    done = subprocess.run(
        [SIDESTREAM, *words], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    refused(Finished(done.returncode, done.stdout, done.stderr), 2, 'invalid port number: "999999"); correct it')


def test_no_database_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDESTREAM_DATABASE_URL")
    refused(run("jobs"), 2, "pass --database-url or set SIDESTREAM_DATABASE_URL")


# -- servers that are not as they should be --------------------------------------------------------------------------


def test_a_postgresql_that_is_not_there_is_code_3(run: Run) -> None:
    for words in (["jobs"], ["job", "show", "1"], ["queue", "list"], ["db", "init"], ["db", "check"], ["enqueue", "a"]):
        refused(run("--database-url", "postgresql://127.0.0.1:1/none", *words), 3, "PostgreSQL")


def test_a_database_without_tables_is_code_3(run: Run) -> None:
    for words in (["jobs"], ["queue", "list"], ["job", "show", "1"], ["job", "retry", "1"], ["enqueue", "a"]):
        refused(run(*words), 3, "sidestream db init")


def test_tables_of_another_release_are_code_3(ready: Run, database: str) -> None:
    execute(database, "UPDATE sidestream_meta SET version = 99, usable_from = 99")
    for words in (["enqueue", "a"], ["db", "init"], ["db", "upgrade"]):
        refused(ready(*words), 3, "version 99")
    refused(ready("db", "check"), 1, "version 99")


def test_a_redis_that_is_not_there_leaves_the_row(ready: Run) -> None:
    done = ready("--redis-url", "redis://127.0.0.1:1/0", "enqueue", "a", "--json")
    assert answer(done) == {"id": 1, "published": False}
    assert [job["id"] for job in answer(ready("jobs", "--json"))["jobs"]] == [1]


def test_a_direct_job_without_redis_is_code_3(ready: Run) -> None:
    refused(ready("--redis-url", "redis://127.0.0.1:1/0", "enqueue", "a", "--direct"), 3, "was not enqueued")


def test_a_redis_without_the_database_number_is_code_3(ready: Run, redis_server: RedisServer) -> None:
    done = ready("--redis-url", f"{redis_server.url}?db=99", "enqueue", "a", "--direct")
    refused(done, 3, "DB index is out of range; lower the number at the end of redis_url")


def test_an_unsuitable_redis_is_code_3(ready: Run, redis_server: RedisServer) -> None:
    redis_server.client().config_set("maxmemory-policy", "allkeys-lru")
    try:
        refused(ready("enqueue", "a", "--direct"), 3, "noeviction")
    finally:
        redis_server.client().config_set("maxmemory-policy", "noeviction")


# -- what it does ----------------------------------------------------------------------------------------------------


def test_the_tables_are_made_once(run: Run, database: str) -> None:
    first = answer(run("db", "init", "--json"))
    assert answer(run("db", "init", "--json")) == {**first, "created": False}
    assert first["version"] == schema.SCHEMA_VERSION
    assert f"version {schema.SCHEMA_VERSION}" in run("db", "init").stdout


def test_the_instance_name_is_recorded_where_the_operator_sets_it(
    run: Run, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("db", "init")
    monkeypatch.setenv("SIDESTREAM_INSTANCE", "production")
    assert "of the instance 'production'" in run("db", "init").stdout
    monkeypatch.delenv("SIDESTREAM_INSTANCE")
    assert "of the instance 'production'" in run("db", "init").stdout, "without a name, the recorded one is kept"
    refused(run("db", "check"), 1, "belongs to the instance 'production', and this worker has no name")
    monkeypatch.setenv("SIDESTREAM_INSTANCE", "staging")
    refused(run("db", "init"), 3, "belongs to the instance 'production'")
    assert "of the instance 'staging'" in run("db", "adopt").stdout
    assert answer(run("db", "check", "--json"))["instance"] == "staging"
    for wrong in ("a\x1bb", "line\nbreak"):
        monkeypatch.setenv("SIDESTREAM_INSTANCE", wrong)
        refused(run("db", "init"), 2, "(printable characters)")
        refused(run("db", "check"), 2, "(printable characters)")


def test_a_job_is_enqueued_and_published(ready: Run, database: str, redis_server: RedisServer) -> None:
    done = ready(
        "enqueue", "invoice.print", "--arg", "42", "--arg", '"x"', "--kwarg", 'lang="el"', "--kwarg", "copies=2",
        "--key", "invoice:42", "--queue", "print", "--json",
    )  # fmt: skip
    assert answer(done) == {"id": 1, "published": True}
    shown = answer(ready("job", "show", "1", "--json"))
    assert (shown["args"], shown["kwargs"]) == ([42, "x"], {"lang": "el", "copies": 2})
    assert (shown["action"], shown["queue"], shown["key"]) == ("invoice.print", "print", "invoice:42")
    assert (shown["state"], shown["status"], shown["history"]) == ("pending", "waiting", [])
    with psycopg.connect(database) as connection:
        tag = schema.identify(connection.cursor()).tag
    broker = build_broker(Settings(redis_url=redis_server.url))
    broker.generation()
    broker.configure(tag, Rules())
    [delivery] = broker.claim("test", [lane(tag, "print")], free=5)
    broker.close()
    assert Reference.unpack(delivery.reference).id == 1


def test_a_job_for_later_is_scheduled(ready: Run) -> None:
    assert answer(ready("enqueue", "a", "--run-at", "2099-12-24T18:00:00+02:00", "--json"))["id"] == 1
    assert answer(ready("enqueue", "a", "--delay", "1h", "--json"))["id"] == 2
    first = answer(ready("job", "show", "1", "--json"))
    assert first["status"] == "scheduled"
    assert datetime.fromisoformat(first["run_at"]) == datetime(2099, 12, 24, 16, tzinfo=UTC)


def test_a_direct_job_is_repeated_with_its_id(ready: Run, redis_server: RedisServer) -> None:
    uuid = "01a206c8-86de-748f-8b5f-a51b65d2cbf4"
    for _ in range(2):
        assert answer(ready("enqueue", "a", "--direct", "--id", uuid, "--json"))["id"] == uuid
    made = answer(ready("enqueue", "a", "--direct", "--json"))["id"]
    broker = build_broker(Settings(redis_url=redis_server.url))
    broker.generation()
    broker.configure(NO_TAG8, Rules())
    deliveries = broker.claim("test", [lane(NO_TAG8, "default")], free=5)
    broker.close()
    assert sorted(str(Reference.unpack(delivery.reference).uuid) for delivery in deliveries) == sorted([uuid, made])


def test_the_application_s_actions_are_checked(ready: Run, tmp_path: Path) -> None:
    (tmp_path / "shop_jobs.py").write_text(
        "from sidestream import Actions\n"
        "actions = Actions()\n"
        "@actions.action('invoice.print', queue='print')\n"
        "def print_invoice(context, number): ...\n"
    )
    refused(ready("--app", "shop_jobs:actions", "enqueue", "invoice.send"), 2, "expected one of: invoice.print")
    refused(ready("--app", "shop_jobs:actions", "enqueue", "invoice.print"), 2, "missing a required argument: 'number'")
    answer(ready("--app", "shop_jobs:actions", "enqueue", "invoice.print", "--arg", "7", "--json"))
    assert answer(ready("job", "show", "1", "--json"))["queue"] == "print"


def test_jobs_are_listed_by_page_state_and_queue(ready: Run, database: str) -> None:
    execute(
        database,
        "INSERT INTO sidestream_job (action, queue, payload, state) "
        """SELECT 'a', CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, '{"v":1,"args":[],"kwargs":{}}', """
        "CASE WHEN n <= 4 THEN 'failed' ELSE 'pending' END FROM generate_series(1, 10) n",
    )

    def ids(*words: str) -> list[int]:
        return [job["id"] for job in answer(ready("jobs", "--json", *words))["jobs"]]

    assert ids() == list(range(10, 0, -1))
    assert ids("--limit", "3") == [10, 9, 8]
    assert ids("--limit", "3", "--before", "8") == [7, 6, 5]
    assert ids("--state", "failed") == [4, 3, 2, 1]
    assert ids("--state", "failed", "--queue", "even") == [4, 2]
    assert ids("--state", "done") == []
    listed = ready("jobs").stdout
    assert listed.splitlines()[0].split()[:4] == ["ID", "STATUS", "QUEUE", "ACTION"]
    assert len(listed.splitlines()) == 11
    assert ready("jobs", "--state", "done").stdout == "No jobs.\n"
    counts = answer(ready("queue", "list", "--json"))["queues"]
    assert [(queue["queue"], queue["due"], queue["failed"]) for queue in counts] == [
        ("even", 3, 2),
        ("odd", 3, 2),
    ]
    assert ready("queue", "list").stdout.splitlines()[1].split()[:5] == ["even", "3", "0", "0", "2"]


def test_what_users_wrote_is_shown_as_it_is(ready: Run, database: str) -> None:
    answer(ready("enqueue", "a", "--key", "[red]order 5[/red]", "--json"))
    execute(database, "UPDATE sidestream_job SET state = 'failed', error = E'[bold]no\\nsecond line'")
    assert "[red]order 5[/red]" in ready("jobs").stdout
    assert "[bold]no" in ready("jobs").stdout
    assert "second line" not in ready("jobs").stdout
    assert "second line" in ready("job", "show", "1").stdout


def test_a_job_is_cancelled_retried_and_made_due_now(ready: Run, database: str, redis_server: RedisServer) -> None:
    answer(ready("enqueue", "a", "--delay", "3600", "--json"))
    assert ready("job", "cancel", "1").stdout == "Job 1 is cancelled.\n"
    assert answer(ready("job", "show", "1", "--json"))["state"] == "cancelled"
    refused(ready("job", "cancel", "1"), 1, "Job 1 is cancelled; expected a job that is pending")
    assert answer(ready("job", "retry", "1", "--json")) == {"id": 1, "done": True, "answer": "pending"}
    refused(ready("job", "retry", "1"), 1, "expected a job that is failed or cancelled")
    assert answer(ready("job", "show", "1", "--json"))["status"] == "scheduled", "as it was before"
    with psycopg.connect(database) as connection:
        tag = schema.identify(connection.cursor()).tag
    broker = build_broker(Settings(redis_url=redis_server.url))
    broker.generation()
    broker.configure(tag, Rules())
    assert broker.claim("test", [lane(tag, "default")], free=5) == [], "it is scheduled, as it was before"
    assert ready("job", "run-now", "1").stdout == "Job 1 is due now.\n"
    broker.configure(tag, Rules())
    [delivery] = broker.claim("test", [lane(tag, "default")], free=5)
    broker.settle([delivery])

    answer(ready("enqueue", "a", "--delay", "3600", "--json"))
    assert broker.claim("test", [lane(tag, "default")], free=5) == []
    assert ready("job", "run-now", "2").stdout == "Job 2 is due now.\n"
    broker.configure(tag, Rules())
    [delivery] = broker.claim("test", [lane(tag, "default")], free=5)
    broker.close()
    assert Reference.unpack(delivery.reference).id == 2


def test_a_running_job_is_asked_to_stop(ready: Run, database: str) -> None:
    answer(ready("enqueue", "a", "--json"))
    with psycopg.connect(database) as worker:
        worker.execute("SELECT FROM sidestream_job WHERE id = 1 FOR NO KEY UPDATE")
        refused(ready("job", "run-now", "1"), 1, "in use by another session")
        assert ready("job", "cancel", "1").stdout == (
            "Cancellation of job 1 is requested; its worker stops it unless it finishes first.\n"
        )
        assert answer(ready("job", "show", "1", "--json"))["cancelling"] is True
        assert "cancellation requested" in ready("jobs").stdout


def test_a_job_that_is_not_there_is_code_1(ready: Run) -> None:
    for words in (
        ["job", "show", "7"],
        ["job", "cancel", "7"],
        ["job", "retry", "7", "--json"],
        ["job", "show", str(2**62)],
    ):
        refused(ready(*words), 1, "There is no job")


def test_a_frozen_redis_does_not_hold_the_command(ready: Run, redis_server: RedisServer) -> None:
    redis_server.freeze()
    try:
        started = time.monotonic()
        assert answer(ready("enqueue", "a", "--json"))["published"] is False
        assert time.monotonic() - started < 10
    finally:
        redis_server.thaw()


def test_a_frozen_postgresql_is_code_3(ready: Run, postgres: PostgresServer) -> None:
    postgres.freeze()
    try:
        refused(ready("jobs"), 3, "PostgreSQL does not answer")
    finally:
        postgres.thaw()


def test_the_tables_are_checked(ready: Run, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(ready("db", "check", "--json"))
    assert (found["ok"], found["version"], found["instance"]) == (True, schema.SCHEMA_VERSION, None)
    assert "only an instance name detects a physical copy" in ready("db", "check").stdout
    monkeypatch.setenv("SIDESTREAM_INSTANCE", "production")
    assert answer(ready("db", "check", "--json"))["instance"] is None, "a check changes nothing"
    assert "and none is recorded: set SIDESTREAM_INSTANCE" in ready("db", "check").stdout
    execute(database, "UPDATE sidestream_meta SET instance = 'staging'")
    refused(
        ready("db", "check"), 1, "belongs to the instance 'staging', and this worker is of the instance 'production'"
    )
    monkeypatch.setenv("SIDESTREAM_INSTANCE", "staging")
    assert answer(ready("db", "check", "--json"))["instance"] == "staging"
    assert "workers with another instance name, or none, refuse it and its copies" in ready("db", "check").stdout
    execute(database, "ALTER TABLE sidestream_rule DROP COLUMN note; ALTER TABLE sidestream_job DROP COLUMN reason")
    refused(ready("db", "check"), 1, "lack sidestream_job.reason, sidestream_rule.note;")
    execute(database, "UPDATE sidestream_meta SET instance = NULL, home = 'elsewhere'")
    refused(ready("db", "check"), 1, "is a copy")
    done = ready("db", "check", "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (1, False)
    execute(database, "DROP TABLE sidestream_meta")
    refused(ready("db", "check"), 1, "run: sidestream db init")


def test_tables_of_this_version_need_no_upgrade(ready: Run) -> None:
    version = schema.SCHEMA_VERSION
    assert answer(ready("db", "upgrade", "--json")) == {"from": version, "version": version}
    assert ready("db", "upgrade").stdout == f"The tables have version {version} already; there is nothing to do.\n"


def test_tables_of_an_older_version_are_upgraded_once(
    ready: Run, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = schema.SCHEMA_VERSION
    monkeypatch.setattr(schema, "SCHEMA_VERSION", before + 2)
    added = {before + n: f"ALTER TABLE sidestream_meta ADD COLUMN later{n} text" for n in (1, 2)}
    monkeypatch.setattr(schema, "UPGRADES", added)
    assert ready("db", "upgrade").stdout == (
        f"The tables are upgraded from version {before} to version {before + 2}.\n"
    )
    execute(database, "SELECT later1, later2 FROM sidestream_meta")
    assert answer(ready("db", "upgrade", "--json")) == {"from": before + 2, "version": before + 2}


def test_without_tables_there_is_nothing_to_upgrade(run: Run) -> None:
    refused(run("db", "upgrade"), 3, "run: sidestream db init")
