"""What a unique means, cell by cell of docs/explanation/uniqueness.md: each test names its cell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidestream.job.job import Job, Unique
from sidestream.store import acquire, locks, outcomes, retention
from sidestream.store.job_row import JobRow
from tests.integration.store.conftest import Connect
from tests.integration.store.sessions import Session

DAY = 86_400
STRATEGIES = ["return", "replace", "newest"]
UNTILS = ["started", "done", "window"]
EVERY = [(until, conflict) for until in UNTILS for conflict in STRATEGIES]


def unique(until: str, conflict: str) -> Unique:
    return Unique("u", until, 3600.0 if until == "window" else 0.0, conflict)  # type: ignore[arg-type]


def put(session: Session, until: str, conflict: str, number: int, **options: Any) -> JobRow:
    [found] = session.insert(Job("test.act", (number,), unique=unique(until, conflict), **options))
    return found


def argument(session: Session, job_id: int) -> int:
    """The number that :func:`put` gave it."""
    [payload] = session.row(job_id, "payload")
    return int(payload.split('"args":[')[1].split("]")[0])


def pending_ids(session: Session) -> list[int]:
    return [found for (found,) in session.all("SELECT id FROM sidestream_job WHERE state = 'pending' ORDER BY id")]


def run_all(session: Session) -> list[int]:
    """Start every pending job until none is left; return the numbers of those that ran, in order."""
    ran = []
    while ids := pending_ids(session):
        for job_id in ids:
            found = session.acquire_row(job_id)
            if isinstance(found, acquire.Acquired):
                ran.append(argument(session, job_id))
                outcomes.finish(session.cur, job_id)
            session.commit()
    return ran


def check_answer(conflict: str, first: JobRow, second: JobRow, session: Session) -> None:
    """What two enqueues that see each other leave of a job that waits."""
    if conflict == "newest":
        assert not second.existed
        assert session.row(first.id, "state, reason") == ("cancelled", f'replaced|{{"by": {second.id}}}')
        assert pending_ids(session) == [second.id]
    else:
        assert (second.id, second.existed) == (first.id, True)
        assert pending_ids(session) == [first.id]
    assert run_all(session) == [1 if conflict == "return" else 2]


# -- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_in_one_call(a: Session, until: str, conflict: str) -> None:
    jobs = [Job("test.act", (number,), unique=unique(until, conflict)) for number in (1, 2, 3)]
    first, second, third = a.insert(Job("test.act", (0,)), *jobs)[1:]
    assert first.id == second.id == third.id
    assert [one.existed for one in (first, second, third)].count(False) == 1
    assert run_all(a) == [0, 1 if conflict == "return" else 3]


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_in_one_transaction(a: Session, until: str, conflict: str) -> None:
    a.begin()
    first, second = put(a, until, conflict, 1), put(a, until, conflict, 2)
    a.commit()
    check_answer(conflict, first, second, a)


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_one_after_the_other(a: Session, b: Session, until: str, conflict: str) -> None:
    first = put(a, until, conflict, 1)
    b.begin()
    second = put(b, until, conflict, 2)
    b.commit()
    check_answer(conflict, first, second, a)


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_the_second_is_rolled_back(a: Session, b: Session, until: str, conflict: str) -> None:
    put(a, until, conflict, 1)
    b.begin()
    put(b, until, conflict, 2)
    b.rollback()
    assert run_all(a) == [1], "the first is as it was"


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_the_first_is_rolled_back(a: Session, b: Session, until: str, conflict: str) -> None:
    a.begin()
    put(a, until, conflict, 1)
    assert not put(b, until, conflict, 2).existed
    a.rollback()
    assert run_all(b) == [2], "no ghost suppresses it"


def test_another_key_is_no_duplicate(a: Session) -> None:
    a.insert(*(Job("test.act", (n,), unique=Unique(f"u{n}")) for n in (1, 2)))
    assert len(pending_ids(a)) == 2


# -- overlapping transactions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_overlapping_transactions_wait_for_nobody_and_are_folded(
    a: Session, b: Session, until: str, conflict: str
) -> None:
    a.begin()
    first = put(a, until, conflict, 1)
    b.begin()
    second = put(b, until, conflict, 2)  # a lock time-out of 3 s would raise
    assert not second.existed
    b.commit()
    a.commit()
    assert pending_ids(a) == [first.id, second.id]
    # Whichever starts first, one runs: the first, or the newest.
    ended = second if conflict == "return" else first
    kept = first if conflict == "return" else second
    found = a.acquire_row(ended.id)
    assert isinstance(found, acquire.Cancelled)
    a.commit()
    reason = 'duplicate|{"of": %s}' if conflict == "return" else 'replaced|{"by": %s}'
    assert a.row(ended.id, "state, reason") == ("cancelled", reason % kept.id)
    assert run_all(a) == [1 if conflict == "return" else 2]


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_overlapping_and_the_other_starts_first(a: Session, b: Session, until: str, conflict: str) -> None:
    a.begin()
    first = put(a, until, conflict, 1)
    second = put(b, until, conflict, 2)
    a.commit()
    order = (first, second) if conflict == "return" else (second, first)
    for one in order:
        if isinstance(a.acquire_row(one.id), acquire.Acquired):
            outcomes.finish(a.cur, one.id)
        a.commit()
    assert run_all(a) in ([], [1], [2])
    states = {a.row(one.id, "state")[0] for one in (first, second)}
    # "return" until started or done: the first was over before the second started, as if enqueued later.
    assert states == ({"done"} if conflict == "return" and until != "window" else {"done", "cancelled"})


# -- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_while_the_first_runs(a: Session, b: Session, connect: Connect, until: str, conflict: str) -> None:
    first = put(a, until, conflict, 1)
    a.hold(first.id)
    b.begin()
    second = put(b, until, conflict, 2)
    b.commit()
    if conflict == "return" and until != "started":
        assert (second.id, second.existed) == (first.id, True)
    else:
        assert not second.existed
        c = connect()
        beside = c.acquire_row(second.id)
        if until == "started":
            assert isinstance(beside, acquire.Acquired), "what runs may have missed what the caller wrote"
        else:
            assert isinstance(beside, acquire.Blocked), "it runs after the active one"
        c.rollback()
    outcomes.finish(a.cur, first.id)
    a.commit()
    assert run_all(a) == ([] if second.existed else [2])


@pytest.mark.parametrize("conflict", ["replace", "newest"])
def test_with_keys_of_their_own_the_new_one_still_waits_for_the_active_one(
    a: Session, b: Session, conflict: str
) -> None:
    first = put(a, "done", "return", 1, key="k1")
    a.hold(first.id)
    second = put(b, "done", conflict, 2, key="k2")
    assert isinstance(b.acquire_row(second.id), acquire.Locked)
    b.rollback()
    outcomes.finish(a.cur, first.id)
    a.commit()
    assert run_all(b) == [2]


@pytest.mark.parametrize("conflict", STRATEGIES)
def test_a_job_between_two_of_its_transactions_runs(a: Session, b: Session, conflict: str) -> None:
    first = put(a, "started", conflict, 1)
    lock = locks.job_lock(first.id)
    assert locks.lock_tag(a.cur, lock)  # a three-step job in its second step: nobody has its row
    second = put(b, "started", conflict, 2)
    assert not second.existed
    assert isinstance(b.acquire_row(second.id), acquire.Acquired)
    b.rollback()
    locks.unlock_tag(a.cur, lock)


@pytest.mark.parametrize("conflict", STRATEGIES)
@pytest.mark.parametrize("until", ["started", "done"])
def test_a_duplicate_leaves_the_row_of_a_job_between_its_transactions_alone(
    a: Session, b: Session, until: str, conflict: str
) -> None:
    first = put(a, until, conflict, 1)
    lock = locks.job_lock(first.id)
    assert locks.lock_tag(a.cur, lock)
    b.begin()
    put(b, until, conflict, 2)  # its transaction is not over
    assert isinstance(acquire.acquire_job(a.cur, first.id, attempts_seen=0), acquire.Acquired)
    locks.unlock_tag(a.cur, lock)
    b.rollback()


@pytest.mark.parametrize("conflict", STRATEGIES)
def test_a_duplicate_that_starts_leaves_the_row_of_a_job_between_its_transactions_alone(
    a: Session, b: Session, conflict: str
) -> None:
    a.begin()
    first = put(a, "started", conflict, 1)
    b.begin()
    second = put(b, "started", conflict, 2)  # the two do not see each other
    a.commit()
    b.commit()
    lock = locks.job_lock(first.id)
    assert locks.lock_tag(a.cur, lock)
    b.acquire_row(second.id)
    assert isinstance(acquire.acquire_job(a.cur, first.id, attempts_seen=0), acquire.Acquired)
    locks.unlock_tag(a.cur, lock)
    b.rollback()


@pytest.mark.parametrize("conflict", ["replace", "newest"])
def test_a_running_job_that_fails_makes_room_for_the_newer_one(a: Session, b: Session, conflict: str) -> None:
    first = put(a, "done", conflict, 1)
    a.hold(first.id)
    second = put(b, "done", conflict, 2)
    a.rollback()
    assert outcomes.fail_attempt(a.cur, first.id, 0, 0.0, "Boom").applied
    assert run_all(b) == [2]
    assert b.row(first.id, "state, reason") == ("cancelled", f'replaced|{{"by": {second.id}}}')


# -- ended -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_after_the_first_is_done(a: Session, until: str, conflict: str) -> None:
    first = put(a, until, conflict, 1)
    a.done(first.id)
    second = put(a, until, conflict, 2)
    assert second.existed is (until == "window")
    assert run_all(a) == ([] if until == "window" else [2])


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_after_the_first_was_cancelled(a: Session, until: str, conflict: str) -> None:
    first = put(a, until, conflict, 1)
    a.execute("UPDATE sidestream_job SET state = 'cancelled' WHERE id = %(id)s", {"id": first.id})
    assert not put(a, until, conflict, 2).existed
    assert run_all(a) == [2]


@pytest.mark.parametrize("conflict", STRATEGIES)
def test_after_the_window(a: Session, conflict: str) -> None:
    first = put(a, "window", conflict, 1)
    a.done(first.id)
    a.execute("UPDATE sidestream_job SET created_at = created_at - interval '3601 seconds'")
    assert not put(a, "window", conflict, 2).existed
    assert run_all(a) == [2]


def test_a_row_is_kept_as_long_as_its_window(a: Session) -> None:
    kept, old = put(a, "window", "return", 1), a.one()
    for job_id in (kept.id, old):
        a.done(job_id)
    a.execute("UPDATE sidestream_job SET ended_at = ended_at - interval '30 minutes', created_at = created_at - "
              "interval '30 minutes'")  # fmt: skip
    assert retention.prune(a.cur, 0.001 * DAY, None, 100) == 1
    assert put(a, "window", "return", 2).id == kept.id
    a.execute("UPDATE sidestream_job SET created_at = created_at - interval '31 minutes'")
    assert retention.prune(a.cur, 0.001 * DAY, None, 100) == 1


# -- old snapshots: Odoo's requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("until", "conflict"), EVERY)
def test_a_job_that_ended_after_the_callers_snapshot_does_not_swallow_the_new_one(
    a: Session, b: Session, until: str, conflict: str
) -> None:
    first = put(a, until, conflict, 1)
    b.begin()
    assert b.value("SELECT count(*) FROM sidestream_job") == 1  # the request's snapshot
    a.done(first.id)
    second = put(b, until, conflict, 2)
    assert not second.existed, "no 40001 for the user, no job lost"
    b.commit()
    assert run_all(a) == ([] if (until, conflict) == ("window", "return") else [2])


def test_in_read_committed_too(a: Session, b: Session) -> None:
    first = put(a, "done", "return", 1)
    b.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    assert put(b, "done", "return", 2).id == first.id
    b.commit()
    assert run_all(a) == [1]


@pytest.mark.parametrize("until", ["started", "done"])
def test_the_job_that_answered_starts_after_the_callers_commit(a: Session, b: Session, until: str) -> None:
    first = put(a, until, "return", 1)
    b.begin()
    assert put(b, until, "return", 2).id == first.id
    assert isinstance(a.acquire_row(first.id), acquire.Locked), "else it would not see what the caller wrote"
    a.rollback()
    b.commit()
    assert run_all(a) == [1]


@pytest.mark.parametrize("until", ["started", "done"])
def test_two_callers_may_be_answered_with_one_job(a: Session, b: Session, connect: Connect, until: str) -> None:
    first = put(a, until, "return", 1)
    c = connect()
    for session in (b, c):
        session.begin()
        assert put(session, until, "return", 2).id == first.id
        session.commit()


# -- what is replaced ------------------------------------------------------------------------------------------------


def test_replace_takes_over_arguments_and_time_and_keeps_the_place(a: Session) -> None:
    first = put(a, "done", "replace", 1)
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
    second = put(a, "done", "replace", 2, run_at=later, priority=1)
    assert (second.id, second.run_at, second.priority) == (first.id, later, 1)
    assert argument(a, first.id) == 2


def test_replace_by_a_job_with_another_reference_is_a_new_row(a: Session) -> None:
    first = put(a, "done", "replace", 1)
    second = put(a, "done", "replace", 2, group="other")
    assert not second.existed
    assert a.row(first.id, "state, reason") == ("cancelled", f'replaced|{{"by": {second.id}}}')


def test_many_at_once(a: Session) -> None:
    first = a.insert(*(Job("test.act", (n,), unique=Unique(f"u{n}")) for n in range(500)))
    again = a.insert(*(Job("test.act", (n,), unique=Unique(f"u{n}")) for n in range(250, 750)))
    assert [one.id for one in again[:250]] == [one.id for one in first[250:]]
    assert [one.existed for one in again] == [True] * 250 + [False] * 250
