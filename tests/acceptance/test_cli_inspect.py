"""The commands that look: why a job waits, dead jobs by error, queues by age, jobs by what they are."""

from __future__ import annotations

import psycopg
import pytest

from tests.acceptance.conftest import Run, answer, refused

DEAD = """
    INSERT INTO sidestream_job (action, queue, payload, state, ended_at, attempts, error, error_group, group_name)
    SELECT 'a' || n %% 2, 'q' || n %% 3, '{"v":1,"args":[],"kwargs":{}}', 'dead', now() AT TIME ZONE 'UTC', 1,
           'KeyError: ' || n, 'KeyError: #', 'company:' || n %% 2
    FROM generate_series(1, 600) n"""


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statement.replace("%%", "%"))  # type: ignore[call-overload]  # text of our own


def test_one_sentence_says_why_a_job_waits(ready: Run, database: str) -> None:
    for words in (["--key", "k"], ["--key", "k"], ["--delay", "3600"], ["--queue", "mail"]):
        answer(ready("enqueue", "a", *words, "--json"))

    def why(job: int) -> str:
        return str(answer(ready("why", str(job), "--json"))["why"])

    assert why(1) == "Job 1 waits because no worker that is alive serves the queue 'default'."
    assert why(2) == "Job 2 waits behind job 1 (a), which has the same key 'k' and comes first."
    assert why(3).startswith("Job 3 is scheduled for ")
    assert ready("pause", "--queue", "mail", "--note", "the relay is down").returncode == 0
    assert why(4).startswith("Job 4 waits because the queue 'mail' was paused by ")
    assert why(4).endswith(" (the relay is down).")
    assert ready("job", "3", "--cancel").returncode == 0
    assert ready("why", "3").stdout.startswith("Job 3 does not wait: it was cancelled")
    refused(ready("why", "99"), 1, "There is no job 99")
    refused(ready("why", "0"), 2, "0 is no job's id")


def test_dead_jobs_are_grouped_by_error_and_treated_in_bulk(ready: Run, database: str) -> None:
    execute(database, DEAD)
    [found] = answer(ready("dead", "--json"))["errors"]
    assert (found["error"], found["count"], found["actions"]) == ("KeyError: #", 600, ["a0", "a1"])
    assert found["newest"]["error"] == "KeyError: 600"
    assert answer(ready("dead", "--action", "a1", "--json"))["errors"][0]["count"] == 300
    assert "600" in ready("dead").stdout
    assert answer(ready("dead", "discard", "--queue", "q0", "--json")) == {"discarded": 200}
    assert ready("dead", "retry", "--error", "KeyError: #", "--group", "company:1").stdout == (
        "200 jobs are open again and due now.\n"
    )
    assert answer(ready("dead", "retry", "--all", "--json")) == {"retried": 200}
    refused(ready("dead", "retry", "--all"), 1, "No dead job fits")
    assert ready("dead").stdout == "No job is dead.\n"
    with psycopg.connect(database) as connection:
        states = connection.execute("SELECT state, count(*) FROM sidestream_job GROUP BY 1 ORDER BY 1").fetchall()
        reason = connection.execute("SELECT DISTINCT reason FROM sidestream_job WHERE state = 'cancelled'").fetchall()
    assert states == [("cancelled", 200), ("open", 400)]
    assert reason[0][0].startswith("discarded by ")


def test_queues_groups_and_actions_tell_their_age_and_whether_they_are_paused(ready: Run, database: str) -> None:
    answer(ready("enqueue", "a", "--group", "company:2", "--json"))
    answer(ready("enqueue", "b", "--queue", "mail", "--json"))
    execute(database, "UPDATE sidestream_job SET run_at = run_at - interval '10 minutes' WHERE action = 'a'")
    assert ready("pause", "--group", "company:2").returncode == 0
    assert ready("pause", "--queue", "mail").returncode == 0
    found = answer(ready("queues", "--json"))
    assert [(one["queue"], one["due"], one["paused"]) for one in found["queues"]] == [
        ("default", 1, False),
        ("mail", 1, True),
    ]
    assert [(one["group"], one["paused"]) for one in found["groups"]] == [("", False), ("company:2", True)]
    assert found["queues"][0]["oldest"] > 599
    assert [one["action"] for one in found["actions"]] == ["a", "b"]
    shown = ready("queues").stdout
    assert "mail (paused)" in shown
    assert "10 min" in shown
    assert "company:2 (paused)" in ready("queues", "--by", "group").stdout


def test_jobs_are_found_by_action_group_key_and_error(ready: Run, database: str) -> None:
    execute(database, DEAD)
    answer(ready("enqueue", "a", "--group", "company:2", "--key", "order:5", "--json"))

    def ids(*words: str) -> list[int]:
        return [job["id"] for job in answer(ready("jobs", "--json", *words))["jobs"]]

    assert ids("--action", "a") == ids("--group", "company:2") == ids("--key", "order:5") == [601]
    assert ids("--error", "KeyError: #", "--limit", "2", "--action", "a0") == [600, 598]
    assert ids("--error", "nothing like it") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dead", "retry"), "Nothing narrows it down"),
        (("dead", "discard", "--all", "--queue", "a"), "leave one of them out"),
        (("dead", "discard", "--queue", "a b"), "queue name 'a b'"),
        (("dead", "--queue", "a", "retry"), "come behind that word"),
        (("queues", "--by", "worker"), "--by 'worker' is not known"),
        (("jobs", "--key", ""), "key '' is not allowed"),
    ],
)
def test_odd_questions_are_refused_in_one_sentence(ready: Run, words: tuple[str, ...], said: str) -> None:
    refused(ready(*words), 2, said)
