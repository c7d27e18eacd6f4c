"""The commands that read: the reason why a job waits, failed jobs by error, statistics and the list of jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest

from sidestream import Jobs
from sidestream.broker.protocol import lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.names import tag as tag_of
from sidestream.job.outcome import Release
from sidestream.job.reference import NO_TAG8, Reference
from sidestream.job.rules import Rules
from sidestream.settings import Settings
from sidestream.store import rules, schema
from tests.acceptance.conftest import Run, answer, refused
from tests.support.servers import RedisServer

KEYS = "test:0123456789abcdef0123456789abcdef"
DIRECT_LANES = [lane(NO_TAG8, "default")]
Direct = tuple[Jobs, RedisBroker]
FAILED = """
    INSERT INTO sidestream_job (action, queue, payload, state, ended_at, attempts, error, error_group, group_name)
    SELECT 'a' || n %% 2, 'q' || n %% 3, '{"v":1,"args":[],"kwargs":{}}', 'failed', now() AT TIME ZONE 'UTC', 1,
           'KeyError: ' || n, 'KeyError: #', 'company:' || n %% 2
    FROM generate_series(1, 600) n"""


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statement.replace("%%", "%"))  # type: ignore[call-overload]  # text of our own


def test_one_sentence_says_why_a_job_waits(ready: Run, database: str) -> None:
    for words in (["--key", "k"], ["--key", "k"], ["--delay", "3600"], ["--queue", "mail"]):
        answer(ready("enqueue", "a", *words, "--json"))

    def why(job: int) -> str:
        return str(answer(ready("job", "why", str(job), "--json"))["why"])

    assert why(1) == "Job 1 waits because no worker that is alive serves the queue 'default'."
    assert why(2) == "Job 2 waits behind job 1 (a), which has the same key 'k' and comes first."
    assert why(3).startswith("Job 3 is scheduled for ")
    assert ready("queue", "pause", "mail", "--note", "the relay is down").returncode == 0
    assert why(4).startswith("Job 4 waits because the queue 'mail' was paused by ")
    assert why(4).endswith(" (the relay is down).")
    assert ready("job", "cancel", "3").returncode == 0
    assert ready("job", "why", "3").stdout.startswith("Job 3 does not wait: it was cancelled")
    refused(ready("job", "why", "99"), 1, "There is no job 99")
    refused(ready("job", "why", "0"), 2, "'0' is not the id of a job")


def test_failed_jobs_are_grouped_by_error_and_changed_in_bulk(ready: Run, database: str) -> None:
    execute(database, FAILED)
    [found] = answer(ready("failed", "list", "--json"))["errors"]
    assert (found["error"], found["count"], found["actions"]) == ("KeyError: #", 600, ["a0", "a1"])
    assert found["newest"]["error"] == "KeyError: 600"
    assert answer(ready("failed", "list", "--action", "a1", "--json"))["errors"][0]["count"] == 300
    assert "600" in ready("failed", "list").stdout
    assert answer(ready("failed", "discard", "--queue", "q0", "--json")) == {"discarded": 200}
    assert ready("failed", "retry", "--error", "KeyError: #", "--group", "company:1").stdout == (
        "200 jobs are pending again and due now.\n"
    )
    assert answer(ready("failed", "retry", "--all", "--json")) == {"retried": 200}
    refused(ready("failed", "retry", "--all"), 1, "No failed job matches")
    assert ready("failed", "list").stdout == "No failed jobs.\n"
    with psycopg.connect(database) as connection:
        states = connection.execute("SELECT state, count(*) FROM sidestream_job GROUP BY 1 ORDER BY 1").fetchall()
        reason = connection.execute("SELECT DISTINCT reason FROM sidestream_job WHERE state = 'cancelled'").fetchall()
    assert states == [("cancelled", 200), ("pending", 400)]
    assert reason[0][0].startswith('discarded|{"by": ')


def test_queues_groups_and_actions_show_their_age_and_pauses(ready: Run, database: str) -> None:
    answer(ready("enqueue", "a", "--group", "company:2", "--json"))
    answer(ready("enqueue", "b", "--queue", "mail", "--json"))
    execute(database, "UPDATE sidestream_job SET run_at = run_at - interval '10 minutes' WHERE action = 'a'")
    assert ready("group", "pause", "company:2").returncode == 0
    assert ready("queue", "pause", "mail").returncode == 0
    found = {f"{kind}s": answer(ready(kind, "list", "--json"))[f"{kind}s"] for kind in ("queue", "group", "action")}
    assert [(one["queue"], one["due"], one["paused"]) for one in found["queues"]] == [
        ("default", 1, False),
        ("mail", 1, True),
    ]
    assert [(one["group"], one["paused"]) for one in found["groups"]] == [("", False), ("company:2", True)]
    assert found["queues"][0]["oldest"] > 599
    assert [one["action"] for one in found["actions"]] == ["a", "b"]
    shown = ready("queue", "list").stdout
    assert "mail (paused)" in shown
    assert "10 min" in shown
    assert "company:2 (paused)" in ready("group", "list").stdout


def test_jobs_are_found_by_action_group_key_and_error(ready: Run, database: str) -> None:
    execute(database, FAILED)
    answer(ready("enqueue", "a", "--group", "company:2", "--key", "order:5", "--json"))

    def ids(*words: str) -> list[int]:
        return [job["id"] for job in answer(ready("jobs", "--json", *words))["jobs"]]

    assert ids("--action", "a") == ids("--group", "company:2") == ids("--key", "order:5") == [601]
    assert ids("--error", "KeyError: #", "--limit", "2", "--action", "a0") == [600, 598]
    assert ids("--error", "nothing like it") == []


def test_the_status_says_what_a_pending_job_waits_for(ready: Run, database: str, redis_server: RedisServer) -> None:
    ready("limit", "set", "action:b", "--concurrency", "0")
    ready("queue", "pause", "mail")
    ready("group", "pause", "company:2")
    for words in (
        ["a", "--key", "k"],
        ["a", "--key", "k"],
        ["a", "--delay", "1h"],
        ["a", "--queue", "mail"],
        ["a", "--group", "company:2"],
        ["b"],
        ["c"],
        ["a"],
    ):
        answer(ready("enqueue", *words, "--json"))
    execute(database, "UPDATE sidestream_job SET run_at = run_at + interval '1 hour', attempts = 1 WHERE id = 8")
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        tag, found = schema.identify(cursor).tag, rules.read(cursor)
    broker = RedisBroker(redis_server.url)
    broker.generation()
    broker.configure(tag, found)
    broker.announce("w1", [lane(tag, "default")], "{}", 60_000, frozenset({tag_of("a", 4), tag_of("b", 4)}))
    broker.claim("w1", [lane(tag, "default")], free=10)
    broker.close()

    def statuses(*words: str) -> list[str]:
        return [one["status"] for one in reversed(answer(ready(*words, "jobs", "--json"))["jobs"])]

    expected = ["waiting", "blocked", "scheduled", "paused", "paused", "limited", "unrouted", "retrying"]
    assert statuses() == expected
    assert [answer(ready("job", "show", str(n), "--json"))["status"] for n in range(1, 9)] == expected
    without_redis = ["waiting", "blocked", "scheduled", "paused", "paused", "limited", "waiting", "retrying"]
    assert statuses("--redis-url", "redis://127.0.0.1:1/0") == without_redis


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("failed", "retry"), "No filter is given"),
        (("failed", "discard", "--all", "--queue", "a"), "leave one of them out"),
        (("failed", "discard", "--queue", "a b"), "queue name 'a b'"),
        (("jobs", "--key", ""), "key '' is not allowed"),
    ],
)
def test_a_wrong_filter_is_refused_in_one_sentence(ready: Run, words: tuple[str, ...], said: str) -> None:
    refused(ready(*words), 2, said)


@pytest.fixture
def direct_jobs(redis_server: RedisServer) -> Iterator[tuple[Jobs, RedisBroker]]:
    """A client, and the broker from which the test claims as a worker would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SIDESTREAM_CONFIG", raising=False)  # `run` sets it to what no settings can be read from
        jobs = Jobs(Settings(redis_url=redis_server.url, signing_keys=KEYS))
    broker = RedisBroker(redis_server.url)
    broker.begin_generation()
    broker.configure(NO_TAG8, Rules())
    yield jobs, broker
    broker.close()
    jobs.close()


def fail_all(broker: RedisBroker, error: str) -> None:
    for one in broker.claim("w1", DIRECT_LANES, free=100):
        broker.release(one, Release(charge_attempt=True))
    for one in broker.claim("w1", DIRECT_LANES, free=100):
        assert broker.fail(one, error)


def test_failed_direct_jobs_are_listed_retried_and_discarded(ready: Run, direct_jobs: Direct) -> None:
    jobs, broker = direct_jobs
    first = jobs.enqueue_direct("mail.send", [1], key="k")
    jobs.enqueue_direct("mail.send", [2], group="company:1", priority=2)
    jobs.enqueue_direct("page.purge", [3])
    behind = jobs.enqueue_direct("mail.send", [4], key="k")
    fail_all(broker, "ValueError: order 17 has no address")
    for one in broker.claim("w1", DIRECT_LANES, free=1):
        assert broker.settle([one]) == [], f"{behind} was freed by the failure of {first}"
    execute(str(os.environ["SIDESTREAM_DATABASE_URL"]), FAILED)
    rows, direct = answer(ready("failed", "list", "--json"))["errors"]
    assert (rows["count"], rows["direct"]) == (600, False)
    assert (direct["error"], direct["count"], direct["direct"]) == ("ValueError: order … has no address", 3, True)
    assert direct["actions"] == ["mail.send", "page.purge"]
    assert answer(ready("failed", "list", "--action", "page.purge", "--json"))["errors"][0]["count"] == 1
    assert (
        answer(ready("failed", "list", "--group", "company:1", "--queue", "default", "--json"))["errors"][0]["count"]
        == 1
    )
    assert "no address" in ready("failed", "list").stdout

    shown = answer(ready("job", "show", str(first), "--json"))
    assert (shown["state"], shown["action"], shown["args"], shown["attempts"]) == ("failed", "mail.send", [1], 1)
    assert "failed at" in ready("job", "why", str(first)).stdout
    assert ready("job", "retry", str(first)).stdout == f"The direct job {first} is pending again and due now.\n"
    refused(ready("job", "retry", str(first)), 1, "has not failed")
    (again,) = broker.claim("w1", DIRECT_LANES, free=5)
    assert (Reference.unpack(again.reference).uuid, again.attempts) == (first, 0), "it has all its attempts again"

    assert answer(ready("failed", "discard", "--action", "page.purge", "--json")) == {"discarded": 1}
    assert answer(ready("failed", "retry", "--error", direct["error"], "--json")) == {"retried": 1}
    (other,) = broker.claim("w1", DIRECT_LANES, free=5)
    assert (other.priority, other.payload is not None) == (2, True), "it comes back as it was"
    assert not broker.connection.run("EXISTS", f"{broker.prefix}failed")


def test_failed_direct_jobs_are_listed_without_a_database(
    run: Run, direct_jobs: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, broker = direct_jobs
    monkeypatch.delenv("SIDESTREAM_DATABASE_URL")  # as `run` sets it
    assert run("failed", "list").stdout == "No failed jobs.\n"
    jobs.enqueue_direct("mail.send", [1])
    fail_all(broker, "it broke")
    assert answer(run("failed", "list", "--json"))["errors"][0]["error"] == "it broke"
    assert answer(run("failed", "retry", "--all", "--json")) == {"retried": 1}
    assert len(broker.claim("w1", DIRECT_LANES, free=5)) == 1


def test_without_redis_failed_rows_are_listed_with_a_warning(ready: Run, database: str) -> None:
    execute(database, FAILED)
    done = ready("--redis-url", "redis://127.0.0.1:1/0", "failed", "list")
    assert done.returncode == 0
    assert "600" in done.stdout
    assert "Failed direct jobs, which only Redis holds, are left out: Redis at redis://127.0.0.1:1/0" in done.stderr


def test_why_a_direct_job_waits_and_how_it_is_cancelled(ready: Run, direct_jobs: Direct) -> None:
    jobs, broker = direct_jobs
    first, second = (jobs.enqueue_direct("mail.send", [number], key="k") for number in (1, 2))
    later = jobs.enqueue_direct("mail.send", delay=3600)

    def why(job: UUID) -> str:
        return str(answer(ready("job", "why", str(job), "--json"))["why"]).removeprefix(f"The direct job {job} ")

    assert why(first) == "waits because no worker that is alive serves the queue 'default'."
    assert why(later).startswith("is scheduled for ")
    broker.announce("w1", DIRECT_LANES, "{}", 60_000)
    assert why(first) == "is the next of its priority in the queue 'default' and waits for a free worker."
    assert why(second) == f"waits behind the direct job {first} with the same key 'k'."
    assert ready("action", "pause", "mail.send").returncode == 0
    assert why(second).startswith("waits because the action 'mail.send' was paused by ")
    assert ready("job", "cancel", str(second)).stdout == f"The direct job {second} is cancelled and removed.\n"
    refused(ready("job", "show", str(second)), 1, f"There is no direct job {second}")
    refused(ready("job", "why", str(second)), 1, f"There is no direct job {second}")
    (held,) = broker.claim("w1", DIRECT_LANES, free=5)
    assert Reference.unpack(held.reference).uuid == first
    refused(ready("job", "cancel", str(first)), 1, "does not wait: it is running")
    refused(ready("job", "run-now", str(first)), 2, "'job run-now' is for jobs with a row")
    assert why(first) == "is with the worker w1, which runs it or is about to."
    shown = ready("job", "show", str(later)).stdout
    assert "mail.send" in shown
    assert "delayed" in shown


@pytest.mark.parametrize("text", ["0", "-", "abc", "1.5", "99999999999999999999", "0x7"])
def test_a_wrong_id_is_refused(ready: Run, text: str) -> None:
    refused(ready("job", "show", text), 2, f"{text!r} is not the id of a job")
    refused(ready("job", "why", text), 2, "or the uuid of a direct job")
