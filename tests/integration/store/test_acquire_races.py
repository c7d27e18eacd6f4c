"""Races about acquiring a row and finishing its job, and the guard in the SQL that each needs.

- The right to finish: ``current_setting('sidestream.job')`` in ``outcomes._FINISH``, set by ``acquire._ACQUIRED`` for
  the transaction only, and ``MATERIALIZED`` around the lock, so that it is not set for a row that is locked.
- The state after a lost commit: the waiting lock in ``acquire._STATE_WHEN_UNLOCKED``.
- No row: the second read ``acquire._WHY_NOT`` with its five answers.
- Keys: REPEATABLE READ with ``SKIP LOCKED`` raises 40001, which is not caught; the predecessor test is inside the one
  statement; the key's lock belongs to the session and is taken before the snapshot.
- Order: ``_DUE ... OR before.attempts > 0`` in ``acquire.precedes``.
- Foreign keys: ``FOR NO KEY UPDATE``, which a foreign key's FOR KEY SHARE does not conflict with.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sidestream.errors import LockLost
from sidestream.job.job import Job
from sidestream.job.names import tag
from sidestream.job.states import State
from sidestream.store import acquire, attempts, control, locks, outcomes
from sidestream.store.adapter import LOCK_NOT_AVAILABLE, SERIALIZATION_FAILURE, sqlstate
from tests.integration.store.sessions import ERRORS, Session, beside, until_waiting

NOW = datetime.now(UTC)
LATER = NOW + timedelta(hours=1)


def test_a_commit_inside_the_action_loses_the_right_to_finish(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    a.commit()  # as a cr.commit() in an action does: the lock is gone
    a.begin()
    with pytest.raises(LockLost, match=f"Job {job} cannot be finished"):
        outcomes.finish(a.cur, job)
    a.rollback()
    b.done(job)
    assert b.row(job) == ("done", 0, 0)


def test_the_second_delivery_wins_after_a_commit_inside_the_action(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    a.commit()
    b.hold(job)
    a.begin()
    with pytest.raises(LockLost):
        outcomes.finish(a.cur, job)
    a.rollback()
    outcomes.finish(b.cur, job)
    b.commit()


def test_a_rollback_inside_the_action_loses_the_right_to_finish(a: Session) -> None:
    job = a.one()
    a.hold(job)
    a.rollback()
    a.begin()
    with pytest.raises(LockLost):
        outcomes.finish(a.cur, job)


def test_without_a_transaction_nothing_can_be_finished(a: Session) -> None:
    job = a.one()
    assert isinstance(acquire.acquire_job(a.cur, job), acquire.Acquired)  # autocommit: it is over already
    with pytest.raises(LockLost):
        outcomes.finish(a.cur, job)
    assert a.row(job)[0] == "pending"


def test_another_jobs_lock_does_not_finish_this_one(a: Session) -> None:
    first, second = a.one(), a.one()
    a.hold(first)
    with pytest.raises(LockLost):
        outcomes.finish(a.cur, second)


def test_done_is_written_once(a: Session) -> None:
    job = a.one()
    a.hold(job)
    outcomes.finish(a.cur, job)
    with pytest.raises(LockLost):
        outcomes.finish(a.cur, job)


def test_a_row_that_was_locked_cannot_be_finished(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    assert b.acquire_row(job) == acquire.Locked()
    a.rollback()  # now nobody holds it, and b never did
    with pytest.raises(LockLost):
        outcomes.finish(b.cur, job)


def test_a_row_acquired_again_after_a_commit_can_be_finished(a: Session) -> None:
    job = a.one()
    acquired = a.hold(job)
    a.commit()
    assert isinstance(a.acquire_row(job, attempts_seen=acquired.attempts), acquire.Acquired)
    outcomes.finish(a.cur, job)
    a.commit()
    assert a.row(job)[0] == "done"


def test_a_row_is_not_acquired_again_when_an_attempt_was_charged(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    a.commit()
    assert outcomes.crash(b.cur, job, 0, "It crashed.", 3).applied
    assert a.acquire_row(job, attempts_seen=0) == acquire.Superseded(1)
    a.rollback()
    b.hold(job)
    assert a.acquire_row(job, attempts_seen=1) == acquire.Locked()


def test_no_job_that_became_due_precedes_a_row_acquired_again(a: Session) -> None:
    head = a.one(key="k", run_at=LATER)
    job = a.one(key="k")
    a.hold(job)
    a.commit()
    assert control.run_now(a.cur, head).applied
    assert isinstance(a.acquire_row(job, attempts_seen=0), acquire.Acquired)
    a.rollback()
    assert a.acquire_row(job) == acquire.Blocked(head)


def test_the_state_after_a_lost_commit_is_read_with_a_waiting_lock(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    outcomes.finish(a.cur, job)  # the commit is under way in the old backend
    reading = beside(lambda: acquire.state_when_unlocked(b.cur, job, timeout=15))
    until_waiting(a, b.pid)
    assert not reading.done()
    a.commit()
    assert reading.result(15) is State.DONE


def test_the_wait_is_bounded(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    with pytest.raises(ERRORS) as caught:
        acquire.state_when_unlocked(b.cur, job, timeout=0.05)
    assert sqlstate(caught.value) == LOCK_NOT_AVAILABLE
    assert b.value("SHOW lock_timeout") == "3s"
    a.rollback()
    assert acquire.state_when_unlocked(b.cur, job, timeout=0.05) is State.PENDING
    assert acquire.state_when_unlocked(b.cur, job + 1, timeout=0.05) is None


def test_no_row_has_many_meanings(a: Session, b: Session) -> None:
    running, done, dead, cancelled = (a.one() for _ in range(4))
    scheduled = a.one(run_at=LATER)
    head, behind, far_behind = (a.one(key="k") for _ in range(3))
    a.done(done)
    assert outcomes.fail_job(a.cur, dead, 0, "It can never work.").failed
    assert control.cancel(a.cur, cancelled).applied
    a.hold(running)
    expected = {
        running: acquire.Locked(),
        done: acquire.Terminal(State.DONE),
        dead: acquire.Terminal(State.FAILED),
        cancelled: acquire.Terminal(State.CANCELLED),
        behind: acquire.Blocked(head),
        far_behind: acquire.Blocked(head),
        10_000: acquire.Missing(),
    }
    b.begin()
    assert {job: acquire.acquire_job(b.cur, job) for job in expected} == expected
    not_due = acquire.acquire_job(b.cur, scheduled)
    assert isinstance(not_due, acquire.NotDue)
    assert 3000 < not_due.seconds < 3600
    assert isinstance(acquire.acquire_job(b.cur, head), acquire.Acquired)


def test_a_form_that_edits_the_row_counts_as_locked(a: Session, b: Session) -> None:
    job = a.one()
    a.begin()
    a.execute("SELECT FROM sidestream_job WHERE id = %(id)s FOR UPDATE", {"id": job})
    assert b.acquire_row(job) == acquire.Locked()


def test_an_acquired_row_has_all_that_the_job_needs(a: Session) -> None:
    [stored] = a.insert(Job("test.act", (1, "é"), {"n": None}, queue="q", key="k"))
    acquired = a.hold(stored.id)
    assert acquired == acquire.Acquired(
        stored.id, "test.act", '{"v":1,"args":[1,"é"],"kwargs":{"n":null}}', "q", "k", 0, 0, 0, 0, a.pid
    )


def test_a_row_that_changed_after_the_snapshot_raises_40001(a: Session, b: Session) -> None:
    job = a.one()
    b.begin()
    b.value("SELECT count(*) FROM sidestream_job")  # the snapshot
    assert outcomes.fail_attempt(a.cur, job, 0, 0, "It failed.").applied
    with pytest.raises(ERRORS) as caught:
        acquire.acquire_job(b.cur, job)
    assert sqlstate(caught.value) == SERIALIZATION_FAILURE
    b.rollback()
    assert b.value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid'") <= 1
    assert b.hold(job).attempts == 1  # a new snapshot, nothing left undone


def test_a_pending_predecessor_blocks_whatever_the_locks_say(a: Session, b: Session) -> None:
    first, second = a.one(key="k"), a.one(key="k")
    a.hold(first)
    assert b.acquire_row(second) == acquire.Blocked(first)  # Redis was emptied and admitted it too early
    b.rollback()
    outcomes.finish(a.cur, first)
    assert b.acquire_row(second) == acquire.Blocked(first)  # done, not committed
    a.commit()
    assert acquire.acquire_job(b.cur, second) == acquire.Blocked(first)  # committed, after b's snapshot
    b.rollback()
    assert isinstance(b.acquire_row(second), acquire.Acquired)


def test_an_acquired_job_sees_what_its_predecessor_did(a: Session, b: Session) -> None:
    first, second = a.one(key="k"), a.one(key="k")
    a.hold(first)
    a.execute("INSERT INTO sidestream_attempt (job_id, worker, slot, event) VALUES (0, 'effect', 0, 'done')")
    outcomes.finish(a.cur, first)
    b.begin()
    b.value("SELECT 1")
    early = acquire.acquire_job(b.cur, second)
    a.commit()
    seen = b.value("SELECT count(*) FROM sidestream_attempt WHERE worker = 'effect'")
    assert (early, seen) == (acquire.Blocked(first), 0)
    b.rollback()
    b.hold(second)
    assert b.value("SELECT count(*) FROM sidestream_attempt WHERE worker = 'effect'") == 1


def test_the_keys_lock_outlives_transactions_and_dies_with_its_session(a: Session, b: Session) -> None:
    assert locks.lock_tag(a.cur, tag("k", 8))
    assert not locks.lock_tag(b.cur, tag("k", 8))
    assert locks.lock_tag(b.cur, tag("another", 8))
    a.begin()
    a.value("SELECT 1")
    a.commit()
    a.begin()
    a.rollback()
    assert not locks.lock_tag(b.cur, tag("k", 8))
    b.value("SELECT pg_terminate_backend(%(pid)s, 5000)", {"pid": a.pid})
    assert locks.lock_tag(b.cur, tag("k", 8))
    assert locks.unlock_tag(b.cur, tag("k", 8))


def test_a_key_is_unlocked_by_its_holder_alone(a: Session, b: Session) -> None:
    assert locks.lock_tag(a.cur, tag("k", 8))
    b.execute("SET client_min_messages = error")
    assert not locks.unlock_tag(b.cur, tag("k", 8))
    assert locks.unlock_tag(a.cur, tag("k", 8))
    assert locks.lock_tag(b.cur, b"\xff" * 8)  # tags above 2**63 are numbers below zero
    assert locks.unlock_tag(b.cur, b"\xff" * 8)


def test_overlapping_transactions_have_no_order(a: Session, b: Session) -> None:
    a.begin()
    first = a.one(key="k")
    second = b.one(key="k")
    assert first < second
    b.done(second)  # nobody can know of the first
    a.commit()
    b.done(first)


def test_a_smaller_id_that_appears_late_goes_first_from_then_on(a: Session, b: Session) -> None:
    a.begin()
    first = a.one(key="k")
    second = b.one(key="k")
    a.commit()
    assert b.acquire_row(second) == acquire.Blocked(first)


def test_a_retrying_head_blocks_its_key(a: Session) -> None:
    head, behind = a.one(key="k"), a.one(key="k")
    assert outcomes.fail_attempt(a.cur, head, 0, 3600, "It failed.").applied
    assert isinstance(a.acquire_row(head), acquire.NotDue)
    assert acquire.acquire_job(a.cur, behind) == acquire.Blocked(head)


def test_a_job_does_not_block_its_key_until_it_is_due(a: Session) -> None:
    head, behind, other = a.one(key="k", run_at=LATER), a.one(key="k"), a.one(key="other", run_at=NOW)
    assert isinstance(a.acquire_row(behind), acquire.Acquired)
    assert isinstance(acquire.acquire_job(a.cur, other), acquire.Acquired)
    a.rollback()
    assert control.run_now(a.cur, head).applied
    assert a.acquire_row(behind) == acquire.Blocked(head)


@pytest.mark.parametrize("end", ["failed", "cancelled", "done"])
def test_a_head_that_ended_frees_its_key(a: Session, end: str) -> None:
    head, behind = a.one(key="k"), a.one(key="k")
    if end == "failed":
        assert outcomes.fail_job(a.cur, head, 0, "It can never work.").applied
    elif end == "cancelled":
        assert control.cancel(a.cur, head).applied
    else:
        a.done(head)
    assert isinstance(a.acquire_row(behind), acquire.Acquired)


def test_a_job_that_may_be_acquired_early_counts_as_due_for_those_behind_it(a: Session) -> None:
    soon = a.value("SELECT now()") + timedelta(seconds=0.8)
    head, behind = a.one(key="k", run_at=soon), a.one(key="k")
    assert a.acquire_row(behind) == acquire.Blocked(head)
    assert isinstance(acquire.acquire_job(a.cur, head), acquire.Acquired)


def test_a_key_share_lock_on_the_row_delays_nobody(a: Session, b: Session) -> None:
    job = a.one()
    a.begin()
    a.execute("SELECT FROM sidestream_job WHERE id = %(id)s FOR KEY SHARE", {"id": job})  # as an Odoo many2one's
    b.done(job)


def test_attempt_rows_are_written_while_the_job_runs(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    attempts.record(b.cur, job, "host-1", 0, "started", "alone")
    assert attempts.unfinished(b.cur, "host-1") == {job}
    outcomes.finish(a.cur, job)  # not disturbed by them: no 40001
    a.commit()
    assert attempts.unfinished(b.cur, "host-1") == frozenset()
