"""What the reconciler does for jobs behind their key: nobody waits for a head that is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sidestream.broker.protocol import Delivery
from sidestream.job.job import Job
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.job.rules import Pause, Rules
from sidestream.store import outcomes
from tests.integration.reconciler.conftest import Bench


def put(bench: Bench, *actions: str, key: str = "k", **options: Any) -> list[int]:
    """Insert overdue rows with the same key and publish them."""
    due = bench.clock.now() - timedelta(minutes=1)
    found = bench.insert(*[Job(action, key=key, run_at=due, **options) for action in actions])
    bench.steps()
    return found


def fail(bench: Bench, head: int) -> None:
    """Claim the head and let it fail: it is due again in an hour."""
    [delivery] = claim(bench)
    assert Reference.unpack(delivery.reference).id == head
    with bench.connection.cursor() as cursor:
        assert outcomes.fail_attempt(cursor, head, 0, 3600.0, "no").applied
    bench.broker.release(delivery, Release(delay_ms=3_600_000, charge_attempt=True))


def claim(bench: Bench) -> list[Delivery]:
    return bench.broker.claim("worker", [bench.lane], free=9)


@pytest.mark.parametrize(
    "over", ["UPDATE sidestream_job SET state = 'cancelled' WHERE id = %s", "DELETE FROM sidestream_job WHERE id = %s"]
)
def test_a_delayed_head_whose_row_is_over_is_discarded(bench: Bench, over: str) -> None:
    bench.build()
    first, second, third = put(bench, "act", "act", "act")
    fail(bench, first)
    bench.connection.execute(over, (first,))
    assert bench.claimed() == []
    bench.steps()
    assert bench.claimed() == [second]
    assert bench.broker.published(bench.database.tag, 0) == bytes([sum(0x80 >> row_id for row_id in (second, third))])


def test_one_after_the_other_when_several_are_over(bench: Bench) -> None:
    bench.build()
    *over, last = put(bench, *["act"] * 4)
    fail(bench, over[0])
    bench.connection.execute("UPDATE sidestream_job SET state = 'cancelled' WHERE id = ANY (%s)", (over,))
    bench.connection.execute(
        "UPDATE sidestream_job SET run_at = run_at + interval '1 hour' WHERE id = ANY (%s)", (over,)
    )
    bench.steps()
    for row_id in [*over[1:], last]:
        [delivery] = claim(bench)
        assert Reference.unpack(delivery.reference).id == row_id
        bench.broker.settle([delivery])


def test_a_paused_head_whose_row_is_over_is_discarded(bench: Bench) -> None:
    bench.build()
    bench.broker.configure(bench.database.tag, Rules(version=1, pauses=frozenset({Pause(action="paused")})))
    first, second = put(bench, "paused", "act")
    assert claim(bench) == []
    bench.connection.execute("UPDATE sidestream_job SET state = 'cancelled' WHERE id = %s", (first,))
    bench.steps()
    [delivery] = claim(bench)
    assert Reference.unpack(delivery.reference).id == second


def test_a_head_that_is_open_keeps_its_place(bench: Bench) -> None:
    bench.build()
    [first, _] = put(bench, "act", "act")
    fail(bench, first)
    bench.steps()
    assert bench.claimed() == []
    bench.connection.execute("UPDATE sidestream_job SET attempts = 0 WHERE id = %s", (first,))
    bench.steps()
    assert bench.claimed() == [], "what a row says is not for the reconciler to judge while it is open"


def test_a_head_that_is_handed_off_is_its_workers(bench: Bench) -> None:
    bench.build()
    first, second = put(bench, "act", "act")
    [delivery] = claim(bench)
    bench.connection.execute("UPDATE sidestream_job SET state = 'cancelled' WHERE id = %s", (first,))
    bench.steps()
    assert claim(bench) == []
    assert bench.broker.settle([delivery]) == []
    assert bench.claimed() == [second]


def test_few_heads_are_looked_at_in_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestream.maintenance.overdue_rows.HEADS_LOT", 3)
    bench.build()
    heads, behind = zip(*[put(bench, "act", "act", key=f"k{number}") for number in range(5)], strict=True)
    for delivery in claim(bench):
        bench.broker.release(delivery, Release(delay_ms=3_600_000, charge_attempt=True))
    bench.connection.execute("UPDATE sidestream_job SET state = 'cancelled' WHERE id = ANY (%s)", (list(heads),))
    for some in (behind[:3], behind[3:]):
        bench.reconciler.step()
        assert bench.claimed() == list(some)
