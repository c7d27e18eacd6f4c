"""What pages show at a glance, and what runs: counted from rows that the store itself wrote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sidestream.errors import InvalidJob
from sidestream.store import outcomes, statistics
from tests.integration.store.sessions import Session


def test_open_and_ended_rows_are_counted_by_queue_group_and_action(a: Session) -> None:
    now = datetime.now(UTC)
    a.one(run_at=now - timedelta(seconds=60), queue="mail", group="company:1")
    a.one(queue="mail", group="company:2")
    a.one(run_at=now + timedelta(hours=1), queue="mail")
    retrying, dead = a.one(queue="mail", group="company:1"), a.one()
    assert outcomes.fail_attempt(a.cur, retrying, 0, 600, "It failed.").applied
    assert outcomes.fail_job(a.cur, dead, 0, "It can never work.").applied

    default, mail = statistics.statistics(a.cur, "queue")
    assert (default.name, default.due, default.failed, default.oldest) == ("default", 0, 1, None)
    assert (mail.name, mail.due, mail.scheduled, mail.retrying, mail.failed) == ("mail", 2, 1, 1, 0)
    assert mail.oldest is not None
    assert 60 <= mail.oldest < 120
    by_group = {
        one.name: (one.due, one.scheduled, one.retrying, one.failed) for one in statistics.statistics(a.cur, "group")
    }
    assert by_group == {"": (0, 1, 0, 1), "company:1": (1, 0, 1, 0), "company:2": (1, 0, 0, 0)}
    [by_action] = statistics.statistics(a.cur, "action")
    assert (by_action.name, by_action.due, by_action.failed) == ("test.act", 2, 1)


def test_rate_and_latencies_are_of_what_was_done_lately(a: Session) -> None:
    quick = [a.one(queue="q") for _ in range(4)]
    for job in quick:
        a.done(job)
    [q] = statistics.statistics(a.cur, "queue", window=60)
    assert q.done_per_minute == pytest.approx(4)
    assert q.wait_p50 is not None
    assert q.run_p95 is not None
    # As if they had waited for 5 s and run for 2 s, a minute and more ago: they are no longer of the last minute.
    a.execute(
        "UPDATE sidestream_job SET run_at = run_at - interval '107 s', started_at = run_at - interval '102 s',"
        " ended_at = run_at - interval '100 s'"
    )
    assert statistics.statistics(a.cur, "queue", window=60) == []
    [q] = statistics.statistics(a.cur, "queue", window=600)
    assert (q.wait_p50, q.wait_p95) == pytest.approx((5, 5))
    assert (q.run_p50, q.run_p95) == pytest.approx((2, 2))


def test_statistics_by_something_else_are_refused(a: Session) -> None:
    with pytest.raises(InvalidJob, match="by 'colour' are not known; expected queue, group, action"):
        statistics.statistics(a.cur, "colour")  # type: ignore[arg-type]
