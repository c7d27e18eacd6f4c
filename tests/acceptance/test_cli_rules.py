"""The commands that set rules: pauses, limits, weights, aging, and the priority of a job."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from sidestream.broker.protocol import lane
from sidestream.job.reference import Reference
from sidestream.job.rules import DEFAULT_AGING, Limit, Pause, Rules, Scope
from sidestream.settings import Settings
from sidestream.store import rules, schema
from sidestream.wiring.client import build_broker
from tests.acceptance.conftest import Run, answer, refused
from tests.support.servers import RedisServer


def rules_of(dsn: str) -> Rules:
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        return rules.read(cursor)


def test_a_pause_is_kept_with_its_author_and_note_until_it_is_resumed(ready: Run, database: str) -> None:
    assert answer(ready("queue", "pause", "mail", "--note", "the relay is down", "--json")) == {
        "paused": {"queue": "mail"}
    }
    assert ready("action", "pause", "invoice.print", "--group", "company:2").returncode == 0
    assert rules_of(database).pauses == {Pause("mail"), Pause(None, "invoice.print", "company:2")}
    listed = answer(ready("rule", "list", "--json"))["rules"]
    assert [one["note"] for one in listed] == [None, "the relay is down"]
    assert "@" in listed[0]["by"]
    shown = ready("rule", "list").stdout
    assert "the action invoice.print of the group company:2" in shown
    assert ready("queue", "resume", "mail").stdout == "Resumed: the queue mail.\n"
    assert rules_of(database).pauses == {Pause(None, "invoice.print", "company:2")}
    refused(ready("queue", "resume", "mail"), 1, "There is no pause of the queue mail")


def test_limits_are_set_listed_and_removed(ready: Run, database: str) -> None:
    assert answer(ready("limit", "set", "key:courier", "--concurrency", "1", "--json")) == {
        "scope": "key",
        "name": "courier",
        "concurrency": 1,
        "rate": None,
        "burst": 1,
    }
    said = ready("limit", "set", "action:mail.send", "--rate", "30/min", "--burst", "10")
    assert said.stdout == "Limited: action:mail.send to 0.5 per second, 10 in a burst.\n"
    assert ready("limit", "set", "global", "--concurrency", "0").returncode == 0
    assert rules_of(database).limits == {
        (Scope.KEY, "courier"): Limit(1),
        (Scope.ACTION, "mail.send"): Limit(None, 0.5, 10),
        (Scope.GLOBAL, ""): Limit(0),
    }
    assert len(answer(ready("limit", "list", "--json"))["rules"]) == 3
    assert ready("limit", "remove", "global").returncode == 0
    refused(ready("limit", "remove", "global"), 1, "There is no limit of global")


def test_weights_and_aging(ready: Run, database: str) -> None:
    assert ready("queue", "weight", "mail", "0.5").stdout == "The queue mail has weight 0.5.\n"
    assert ready("group", "weight", "company:2", "3").returncode == 0
    found = rules_of(database)
    assert (found.queue_weights, found.group_weights) == ({"mail": 0.5}, {"company:2": 3})
    assert answer(ready("group", "weight", "company:2", "--json")) == {
        "kind": "group",
        "name": "company:2",
        "weight": 3.0,
    }
    assert ready("queue", "weight", "mail", "1").returncode == 0
    assert rules_of(database).queue_weights == {}
    assert ready("queue", "weight", "mail").stdout == "The queue mail has weight 1.\n"
    assert answer(ready("aging", "show", "--json")) == {"aging": DEFAULT_AGING}
    assert answer(ready("aging", "set", "30", "--json")) == {"aging": 30}
    assert rules_of(database).aging == 30
    assert ready("aging", "set", "5m").stdout.startswith("A job that has been ready for 5m gets")
    assert answer(ready("aging", "reset", "--json")) == {"aging": DEFAULT_AGING}


@pytest.mark.parametrize(
    ("rate", "per_second"),
    [("2", 2.0), ("30/min", 0.5), ("30/m", 0.5), ("36/h", 0.01), ("86400/d", 1.0), ("90/15m", 0.1), ("1/500ms", 2.0)],
)
def test_a_rate_is_starts_per_second_or_per_duration(ready: Run, database: str, rate: str, per_second: float) -> None:
    assert ready("limit", "set", "queue:mail", "--rate", rate).returncode == 0
    assert rules_of(database).limits == {(Scope.QUEUE, "mail"): Limit(None, per_second)}


def test_a_waiting_job_gets_another_priority(ready: Run, database: str, redis_server: RedisServer) -> None:
    answer(ready("enqueue", "a", "--json"))
    job: Any = answer(ready("enqueue", "a", "--priority", "7", "--group", "g", "--limit", "courier:7", "--json"))["id"]
    assert answer(ready("job", "priority", str(job), "0", "--json")) == {"id": job, "priority": 0}
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT priority, group_name, limit_key FROM sidestream_job WHERE id = 2").fetchone()
        tag = schema.identify(connection.cursor()).tag
    assert found == (0, "g", "courier:7")
    broker = build_broker(Settings(redis_url=redis_server.url))
    broker.generation()
    broker.configure(tag, rules_of(database))
    first = broker.claim("test", [lane(tag, "default")], free=1)
    broker.close()
    assert [(Reference.unpack(one.reference).id, one.priority) for one in first] == [(job, 0)]
    refused(ready("job", "priority", "99", "1"), 1, "There is no job 99")
    refused(ready("job", "priority", str(job), "10"), 2, "'PRIORITY': '10'; expected 0 to 9")
    refused(ready("job", "priority", str(job), "-1"), 2, "'PRIORITY': '-1'; expected 0 to 9")


def test_without_workers_there_is_nothing_to_list_or_quiet(ready: Run) -> None:
    assert answer(ready("worker", "list", "--json")) == {"workers": []}
    assert "start one with 'sidestream worker run'" in ready("worker", "list").stdout
    refused(ready("worker", "quiet"), 1, "no worker runs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("queue", "pause", "a b"), "queue name 'a b'"),
        (("action", "pause", "a", "--group", ""), "group ''"),
        (("limit", "set", "mail", "--concurrency", "1"), "'mail' is not a scope of a limit"),
        (("limit", "set", "global:x", "--concurrency", "1"), "is not a scope of a limit"),
        (("limit", "set", "queue:a b", "--concurrency", "1"), "queue name 'a b'"),
        (("limit", "set", "global"), "needs a concurrency, a rate or both"),
        (("limit", "set", "global", "--concurrency", "-1"), "'--concurrency': '-1'; expected 0 to 2147483647"),
        (("limit", "set", "global", "--rate", "-1"), "'-1' is not a rate; expected 0 (none), or starts per second"),
        (
            ("limit", "set", "global", "--rate", "1e300"),
            "'1e300' is not a rate; expected 0 (none), or starts per second",
        ),
        (("limit", "set", "global", "--rate", "1e-300"), "'1e-300' is not a rate"),
        (("limit", "set", "global", "--rate", "1", "--burst", "99999999999999"), "expected 1 to 2147483647"),
        (("limit", "set", "global", "--rate", "fast"), "'fast' is not a rate; expected 0 (none), or starts per second"),
        (("limit", "set", "global", "--rate", "1/week"), "'1/week' is not a rate"),
        (("limit", "set", "global", "--rate", "1", "--burst", "0"), "'--burst': '0'; expected 1 to 2147483647"),
        (("queue", "weight", "a", "-1"), "'[WEIGHT]': '-1'; expected 0.01 to 1000"),
        (("queue", "weight", "a", "0"), "'[WEIGHT]': '0'; expected 0.01 to 1000"),
        (("aging", "set", "-5"), "TIME '-5' is wrong: expected 0s to 365d"),
        (("aging", "set", "99999999999999999d"), "TIME '99999999999999999d' is wrong: expected 0s to 365d"),
        (("aging", "set", "late"), "TIME 'late' is wrong: expected a duration"),
    ],
)
def test_wrong_rules_are_refused_in_one_sentence(ready: Run, words: tuple[str, ...], said: str) -> None:
    refused(ready(*words), 2, said)
