"""Dead letters by error, bulk retry and discard, expiry, snooze, priorities."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidestream.errors import InvalidJob, InvalidName
from sidestream.job.job import Job
from sidestream.job.reason import Reason, ReasonCode
from sidestream.store import acquire, bulk, candidates, control, outcomes, queries
from sidestream.store.bulk import Filter
from sidestream.store.locks import job_lock, lock_tag, unlock_tag
from tests.integration.store.sessions import Session, due_jobs

NOW = datetime.now(UTC)
SNOOZED = Reason(ReasonCode.SNOOZED, {"seconds": 60, "message": "no stock"})


def dead(session: Session, error: str, **options: Any) -> int:
    job_id = session.one(**options)
    assert outcomes.fail_job(session.cur, job_id, 0, error).failed
    return job_id


def test_failed_jobs_are_grouped_by_what_their_errors_share(a: Session) -> None:
    ids = [dead(a, f"ValueError: order {n} of 2024-01-{n:02d} has no lines\nmore") for n in range(10, 13)]
    other = dead(a, "KeyError: 'x'", queue="other")
    first, second = bulk.error_groups(a.cur)
    assert (first.error_group, first.count, first.newest_id) == ("ValueError: order … of … has no lines", 3, ids[-1])
    assert first.newest_error.startswith("ValueError: order 12")
    assert (second.count, second.newest_id, second.actions) == (1, other, ("test.act",))
    assert [one.newest_id for one in bulk.error_groups(a.cur, Filter(queue="other"))] == [other]
    assert [row.id for row in queries.page(a.cur, "failed", error_group=first.error_group)] == ids[::-1]


def test_every_way_to_die_has_a_group(a: Session) -> None:
    crashed, spent, snoozed = (a.one() for _ in range(3))
    outcomes.crash(a.cur, crashed, 0, "It crashed: signal 11.", 1)
    outcomes.count_releases(a.cur, spent, 5, Reason(ReasonCode.LOCKED), 5)
    outcomes.snooze(a.cur, snoozed, 0, 1.0, SNOOZED, cap=0)
    assert a.value("SELECT count(*) FROM sidestream_job WHERE state = 'failed' AND error_group IS NOT NULL") == 3


def test_bulk_retry_takes_what_fits_in_lots_and_waits_for_nobody(a: Session, b: Session) -> None:
    ids = [dead(a, f"Boom {n}", group="g") for n in range(5)]
    dead(a, "other")
    b.execute("BEGIN")
    b.all("SELECT 1 FROM sidestream_job WHERE id = %(id)s FOR UPDATE", {"id": ids[1]})
    only = Filter(error_group="Boom …", group="g", action="test.act", queue="default")
    found = [job.id for job in bulk.retry_failed(a.cur, only, limit=2)]
    assert found == [ids[0], ids[2]]
    assert [job.id for job in bulk.retry_failed(a.cur, only, limit=2, after_id=found[-1])] == ids[3:]
    b.rollback()
    assert [job.id for job in bulk.retry_failed(a.cur, only)] == [ids[1]]
    assert a.row(ids[0], "state, forgiven, error_group") == ("pending", 1, None)
    assert bulk.error_groups(a.cur)[0].count == 1


def test_a_retry_handles_the_requests_to_cancel(a: Session, b: Session) -> None:
    """Else a task would cancel what a person has just acquired again."""
    one, two, others = (a.one() for _ in range(3))
    for job_id in (one, two, others):
        a.hold(job_id)
        assert control.cancel(b.cur, job_id).locked
        assert outcomes.fail_job(a.cur, job_id, 0, "Boom").failed
        a.commit()
    seen = {request.job_id: request for request in control.pending(b.cur)}
    assert control.retry(a.cur, one).applied
    assert [job.id for job in bulk.retry_failed(a.cur, Filter(), limit=1)] == [two]
    assert [request.job_id for request in control.pending(b.cur)] == [others]
    assert [control.carry_out(b.cur, seen[job_id]) for job_id in (one, two)] == [None, None]
    written = control.carry_out(b.cur, seen[others])
    assert written is not None
    assert written.failed
    assert [a.row(job_id, "state") for job_id in (one, two, others)] == [("pending",), ("pending",), ("failed",)]


def test_bulk_discard_says_by_whom(a: Session) -> None:
    job_id = dead(a, "Boom")
    assert [job.id for job in bulk.discard_failed(a.cur, Filter(), by="Ann")] == [job_id]
    assert a.row(job_id, "state, reason") == ("cancelled", 'discarded|{"by": "Ann"}')
    for limit in (0, 5001):
        with pytest.raises(InvalidJob, match=f"limit of {limit} jobs"):
            bulk.discard_failed(a.cur, Filter(), limit=limit)


# -- expiry ----------------------------------------------------------------------------------------------------------


def test_an_expired_job_ends_as_cancelled_when_it_is_acquired(a: Session) -> None:
    job_id = a.one(expires_at=NOW - timedelta(minutes=1))
    found = a.acquire_row(job_id)
    assert isinstance(found, acquire.Cancelled)
    a.commit()
    state, reason = a.row(job_id, "state, reason")
    assert state == "cancelled"
    assert reason.startswith('expired|{"expires_at": "20')


def test_maintenance_cancels_expired_jobs_that_wait_and_no_others(a: Session, b: Session) -> None:
    past, future = NOW - timedelta(minutes=1), NOW + timedelta(minutes=9)
    waiting, scheduled = a.one(expires_at=past), a.one(expires_at=past, run_at=future)
    started, running, later, never = a.one(), a.one(), a.one(expires_at=future), a.one()
    b.hold(running)
    a.execute("UPDATE sidestream_job SET expires_at = %(past)s, attempts = 1 WHERE id = %(id)s",
              {"id": started, "past": past.replace(tzinfo=None)})  # fmt: skip
    assert [job.id for job in bulk.expire(a.cur)] == [waiting, scheduled]
    assert bulk.expire(a.cur) == []
    assert isinstance(a.acquire_row(started), acquire.Acquired), "it was started in time; a retry is no start"
    a.rollback()
    assert {row.id for row in queries.page(a.cur, "pending")} == {started, running, later, never}


def test_a_job_between_two_of_its_transactions_does_not_expire(a: Session, b: Session) -> None:
    job_id = a.one(expires_at=NOW - timedelta(minutes=1))
    assert lock_tag(b.cur, job_lock(job_id))
    assert bulk.expire(a.cur) == []
    assert isinstance(b.acquire_row(job_id, attempts_seen=0), acquire.Acquired)
    b.rollback()
    assert unlock_tag(b.cur, job_lock(job_id))
    assert [job.id for job in bulk.expire(a.cur)] == [job_id]


def test_a_snoozed_job_was_started_and_does_not_expire(a: Session) -> None:
    job_id = a.one(expires_at=NOW + timedelta(minutes=1))
    assert outcomes.snooze(a.cur, job_id, 0, 0.0, SNOOZED, 9).applied
    a.execute("UPDATE sidestream_job SET expires_at = now() - interval '1 day' WHERE id = %(id)s", {"id": job_id})
    assert bulk.expire(a.cur) == []
    a.hold(job_id)


# -- snooze ----------------------------------------------------------------------------------------------------------


def test_a_snooze_costs_no_attempt_and_keeps_the_place_in_line(a: Session) -> None:
    first, second = a.one(key="k"), a.one(key="k")
    outcomes.count_releases(a.cur, first, 9, Reason(ReasonCode.LOCKED), 100)
    written = outcomes.snooze(a.cur, first, 0, 60.0, SNOOZED, 9)
    assert written.applied
    assert not written.terminal
    assert a.row(first, "attempts, snoozes, releases, reason") == (0, 1, 0, SNOOZED.stored())
    assert isinstance(a.acquire_row(second), acquire.Blocked)
    a.rollback()
    assert isinstance(a.acquire_row(first), acquire.NotDue)
    a.rollback()
    assert outcomes.snooze(a.cur, first, 1, 60.0, SNOOZED, 9).superseded, "compare-and-set"


def test_a_snooze_has_a_cap_of_its_own(a: Session) -> None:
    job_id = a.one()
    for _ in range(2):
        assert not outcomes.snooze(a.cur, job_id, 0, 0.0, SNOOZED, cap=2).failed
    assert outcomes.snooze(a.cur, job_id, 0, 0.0, SNOOZED, cap=2).failed
    assert a.row(job_id, "error") == ("It snoozed more than 2 times; the last reason: no stock",)
    control.retry(a.cur, job_id)
    assert a.row(job_id, "state, snoozes") == ("pending", 0)


# -- priority --------------------------------------------------------------------------------------------------------


def test_the_lowest_number_goes_first_and_may_be_changed(a: Session, b: Session) -> None:
    low, high, usual = a.one(priority=9), a.one(priority=0), a.one()
    assert [job.id for job in due_jobs(a.cur, ["default"], 9)] == [high, usual, low]
    assert control.set_priority(a.cur, low, 0).applied
    assert [job.id for job in due_jobs(a.cur, ["default"], 9)] == [low, high, usual]
    b.hold(usual)
    assert control.set_priority(a.cur, usual, 1).locked
    with pytest.raises(InvalidName, match=r"priority 10 is not allowed: expected 0 \(first\) to 9"):
        control.set_priority(a.cur, low, 10)


def test_aged_jobs_are_told_apart(a: Session) -> None:
    old = a.one(priority=9, run_at=NOW - timedelta(hours=1))
    new = [a.one(priority=9), a.one(priority=1)]
    found = candidates.candidates(a.cur, ["default"], 9, aging=600.0)
    assert {one.job.id: one.aged for one in found} == {old: True, new[0]: False, new[1]: False}


def test_what_is_passed_over(a: Session) -> None:
    free = a.one(group="g2")
    a.one(group="g1")
    a.insert(Job("other.act"), Job("pair.act", group="g2"), Job("test.act", limit="l:1"), Job("test.act", limit="r:2"))
    passed_over = candidates.PassedOver({"other.act"}, {"g1"}, {("pair.act", "g2")}, {"l:1"}, {"r"})
    found = candidates.candidates(a.cur, ["default"], 9, passed_over=passed_over)
    assert [one.job.id for one in found] == [free]
