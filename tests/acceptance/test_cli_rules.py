"""The commands that govern many jobs: pauses, limits, weights, aging, and one job's priority."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from sidestream.broker.protocol import lane
from sidestream.job.reference import Reference
from sidestream.job.rules import DEFAULT_AGEING, Limit, Pause, Rules, Scope
from sidestream.settings import Settings
from sidestream.store import rules, schema
from sidestream.wiring.client import build_broker
from tests.acceptance.conftest import Run, answer, refused
from tests.support.servers import RedisServer


def rules_of(dsn: str) -> Rules:
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        return rules.read(cursor)


def test_a_pause_is_kept_with_who_and_why_until_it_is_resumed(ready: Run, database: str) -> None:
    assert answer(ready("pause", "--queue", "mail", "--note", "the relay is down", "--json")) == {
        "paused": {"queue": "mail"}
    }
    assert ready("pause", "--action", "invoice.print", "--group", "company:2").returncode == 0
    assert rules_of(database).pauses == {Pause("mail"), Pause(None, "invoice.print", "company:2")}
    listed = answer(ready("rules", "--json"))["rules"]
    assert [one["note"] for one in listed] == [None, "the relay is down"]
    assert "@" in listed[0]["by"]
    shown = ready("rules").stdout
    assert "the action invoice.print of the group company:2" in shown
    assert ready("resume", "--queue", "mail").stdout == "Resumed: the queue mail.\n"
    assert rules_of(database).pauses == {Pause(None, "invoice.print", "company:2")}
    refused(ready("resume", "--queue", "mail"), 1, "There is no pause of the queue mail")


def test_limits_are_set_listed_and_removed(ready: Run, database: str) -> None:
    assert answer(ready("limit", "set", "key:courier", "--concurrency", "1", "--json")) == {
        "scope": "key",
        "name": "courier",
        "concurrency": 1,
        "rate": None,
        "burst": 1,
    }
    said = ready("limit", "set", "action:mail.send", "--rate", "30/min", "--burst", "10")
    assert said.stdout == "Limited: action:mail.send to 0.5 a second, 10 in a burst.\n"
    assert ready("limit", "set", "global", "--concurrency", "0").returncode == 0
    assert rules_of(database).limits == {
        (Scope.KEY, "courier"): Limit(1),
        (Scope.ACTION, "mail.send"): Limit(None, 0.5, 10),
        (Scope.GLOBAL, ""): Limit(0),
    }
    assert len(answer(ready("limit", "list", "--json"))["rules"]) == 3
    assert ready("limit", "remove", "global").returncode == 0
    refused(ready("limit", "remove", "global"), 1, "There is no limit of global")


def test_weights_and_ageing(ready: Run, database: str) -> None:
    assert ready("weight", "set", "queue:mail", "0.5").stdout == "The queue mail has weight 0.5.\n"
    assert ready("weight", "set", "group:company:2", "3").returncode == 0
    found = rules_of(database)
    assert (found.queue_weights, found.group_weights) == ({"mail": 0.5}, {"company:2": 3})
    assert ready("weight", "remove", "queue:mail").returncode == 0
    refused(ready("weight", "remove", "queue:mail"), 1, "has no weight of its own")
    assert answer(ready("aging", "--json")) == {"aging": DEFAULT_AGEING}
    assert answer(ready("aging", "30", "--json")) == {"aging": 30}
    assert rules_of(database).aging == 30
    assert answer(ready("aging", "--usual", "--json")) == {"aging": DEFAULT_AGEING}


def test_a_waiting_job_gets_another_priority(ready: Run, database: str, redis_server: RedisServer) -> None:
    answer(ready("enqueue", "a", "--json"))
    job: Any = answer(ready("enqueue", "a", "--priority", "7", "--group", "g", "--limit", "courier:7", "--json"))["id"]
    assert answer(ready("priority", str(job), "0", "--json")) == {"id": job, "priority": 0}
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
    refused(ready("priority", "99", "1"), 1, "There is no job 99")
    refused(ready("priority", str(job), "10"), 2, "priority 10 is not allowed")
    refused(ready("priority", str(job), "-1"), 2, "priority -1 is not allowed")


def test_nobody_works(ready: Run) -> None:
    assert answer(ready("workers", "--json")) == {"workers": []}
    assert "start one with 'sidestream worker'" in ready("workers").stdout
    refused(ready("quiet"), 1, "no worker lives")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pause",), "Nothing is named; give --queue"),
        (("pause", "--queue", "a", "--group", "b"), "A pause names a queue, or an action"),
        (("pause", "--queue", "a b"), "queue name 'a b'"),
        (("resume",), "Nothing is named"),
        (("limit", "set", "mail", "--concurrency", "1"), "'mail' is not what a limit can be of"),
        (("limit", "set", "global:x", "--concurrency", "1"), "is not what a limit can be of"),
        (("limit", "set", "queue:a b", "--concurrency", "1"), "queue name 'a b'"),
        (("limit", "set", "global"), "needs concurrency=, rate=, or both"),
        (("limit", "set", "global", "--concurrency", "-1"), "concurrency=-1 is not allowed"),
        (("limit", "set", "global", "--rate", "-1"), "rate=-1.0 is not allowed"),
        (("limit", "set", "global", "--rate", "fast"), "'fast' is not a rate; expected starts a second"),
        (("limit", "set", "global", "--rate", "1/week"), "'1/week' is not a rate"),
        (("limit", "set", "global", "--rate", "1", "--burst", "0"), "burst=0 is not allowed"),
        (("weight", "set", "queue:a", "-1"), "weight -1.0 of the queue 'a' is not allowed"),
        (("weight", "set", "queue:a", "0"), "to stop the queue, pause it"),
        (("weight", "set", "action:a", "1"), "is not what has a weight"),
        (("aging", "-5"), "aging=-5.0 is not allowed"),
        (("aging", "5", "--usual"), "both given"),
    ],
)
def test_odd_rules_are_refused_in_one_sentence(ready: Run, words: tuple[str, ...], said: str) -> None:
    refused(ready(*words), 2, said)
