"""What the PostgreSQL broker does with rules: they are read from their table; limits hold within the process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidestream.broker.postgres import broker
from sidestream.broker.protocol import Delivery, Explanation, Place, Publication, lane
from sidestream.job.job import Job
from sidestream.job.names import tag
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.job.rules import Limit, Pause, Rules, Scope
from sidestream.store import rules
from sidestream.store.insert import insert
from tests.contract.benches import PostgresBench


@pytest.fixture
def own(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresBench]:
    monkeypatch.setattr(broker, "RULES_EVERY", 0.0)
    bench = PostgresBench(database)
    yield bench
    bench.close()


def put(own: PostgresBench, *jobs: Job) -> list[Publication]:
    with own.connection.cursor() as cursor:
        stored = insert(cursor, jobs)
    return [Publication(job.reference(own.identity), lane(own.database, job.queue)) for job in stored]


def claim(own: PostgresBench, free: int = 9, *, queues: tuple[str, ...] = ("default",), name: str = "w1") -> list[int]:
    return [Reference.unpack(one.reference).id for one in deliveries(own, free, queues=queues, name=name)]


def deliveries(
    own: PostgresBench, free: int = 9, *, queues: tuple[str, ...] = ("default",), name: str = "w1"
) -> list[Delivery]:
    return own.broker.claim(name, [lane(own.database, queue) for queue in queues], free=free)


def change(own: PostgresBench, function: Any, *arguments: Any) -> None:
    with own.connection.cursor() as cursor:
        function(cursor, *arguments)


def test_pauses_hold(own: PostgresBench) -> None:
    jobs = put(
        own, Job("a"), Job("b"), Job("b", group="g"), Job("c", group="g"), Job("c"), Job("c", group="h"),
        Job("a", queue="other"),
    )  # fmt: skip
    pauses = [Pause(action="a"), Pause(group="g"), Pause(action="c", group="h"), Pause(queue="other")]
    for pause in pauses:
        change(own, rules.pause, pause)
    both = ("default", "other")
    assert claim(own, queues=both) == [2, 5]
    scopes = [own.broker.explain(job).scope for job in jobs]
    assert scopes == ["action", "", "group", "group", "", "action of group", "queue"]
    assert own.broker.locate(jobs[:2]) == [Place.PAUSED, Place.LEASED]
    for pause in pauses:
        change(own, rules.resume, pause)
    assert sorted(claim(own, queues=both)) == [1, 3, 4, 6, 7]


def test_urgent_jobs_first_and_every_second_turn_an_aged_ones(own: PostgresBench) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    put(own, *[Job("a", priority=9, run_at=hour_ago)] * 2, *[Job("a", priority=0)] * 3, Job("a", priority=9))
    assert [claim(own, 1) for _ in range(6)] == [[3], [1], [4], [2], [5], [6]]


def test_queues_take_turns_by_weight(own: PostgresBench) -> None:
    change(own, rules.set_weight, "queue", "heavy", 3.0)
    put(own, *[Job("a", queue="heavy")] * 40, *[Job("a", queue="light")] * 40)
    found = [one for _ in range(4) for one in claim(own, 4, queues=("heavy", "light"))]
    assert sum(one <= 40 for one in found) == 12
    assert len(found) == 16


def test_limits_hold_within_the_process(own: PostgresBench) -> None:
    change(own, rules.set_limit, Scope.KEY, "courier", Limit(concurrency=1))
    change(own, rules.set_limit, Scope.ACTION, "b", Limit(concurrency=2))
    change(own, rules.set_limit, Scope.QUEUE, "none", Limit(concurrency=0))
    jobs = put(
        own, *[Job("a", limit="courier:1")] * 3, Job("a", limit="courier:2"), *[Job("b")] * 3, Job("a", queue="none")
    )  # fmt: skip
    found = deliveries(own, queues=("default", "none"))
    assert [Reference.unpack(one.reference).id for one in found] == [1, 4, 5, 6]
    assert own.broker.explain(jobs[1]) == Explanation(Place.LIMITED, "key", (jobs[0].reference,))
    assert own.broker.explain(jobs[7]) == Explanation(Place.LIMITED, "queue")
    own.end(found[:1])
    assert claim(own) == [2]
    change(own, rules.set_limit, Scope.ACTION, "b", Limit(concurrency=1))
    own.end([one for one in found if one.reference == jobs[4].reference])
    assert claim(own) == [], "lowered below its holders: nobody until enough ended"
    change(own, rules.remove_limit, Scope.ACTION, "b")
    assert claim(own) == [7]


def test_rates_hold_within_the_process(own: PostgresBench) -> None:
    change(own, rules.set_limit, Scope.GLOBAL, "", Limit(rate=0.001, burst=2))
    jobs = put(own, *[Job("a")] * 3)
    assert claim(own) == [1, 2]
    found = own.broker.explain(jobs[2])
    assert (found.place, found.scope, found.holders) == (Place.LIMITED, "global", ())
    assert found.until_ms > own.now()


def test_an_action_that_the_claimer_does_not_know_is_left_to_others(own: PostgresBench) -> None:
    [first, _] = put(own, Job("new"), Job("old"))
    own.broker.announce("w1", [], "{}", 1000, frozenset({tag("old", 4)}))
    assert claim(own) == [2]
    assert own.broker.explain(first).place is Place.UNROUTED
    own.broker.announce("w2", [], "{}", 1000, frozenset({tag("new", 4)}))
    assert own.broker.explain(first).place is Place.READY
    assert claim(own, name="w1") == []
    assert claim(own, name="w2") == [1]


def test_given_rules_and_those_of_the_table_the_newest_govern(own: PostgresBench) -> None:
    put(own, Job("a"))
    change(own, rules.pause, Pause(action="a"))
    assert claim(own) == []
    assert not own.broker.configure(own.database, Rules(version=1))
    assert not own.broker.configure(b"elsewher", Rules(version=2**60))
    assert own.broker.configure(own.database, Rules(version=2**60))
    assert claim(own) == [1]


def test_explain_and_move(own: PostgresBench) -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    delayed, head, behind, low = put(own, Job("a", run_at=later), Job("a", key="k"), Job("a", key="k"), Job("a"))
    assert own.broker.explain(delayed) == Explanation(Place.DELAYED, until_ms=int(later.timestamp() * 1000))
    assert own.broker.explain(behind) == Explanation(Place.BEHIND_KEY, holders=(head.reference,))
    assert own.broker.reprioritize(low, 0)
    assert claim(own, 1) == [4]
    assert not own.broker.reprioritize(low, 9), "it is handed off"
    [held] = deliveries(own, 1)
    own.broker.release(held, Release(delay_ms=60_000))
    found = own.broker.explain(head)
    assert found.place is Place.DELAYED
    assert found.until_ms > own.now()
    own.connection.execute("UPDATE sidestream_job SET state = 'done'")
    assert own.broker.explain(behind).place is Place.NOWHERE
    assert not own.broker.reprioritize(behind, 1)
