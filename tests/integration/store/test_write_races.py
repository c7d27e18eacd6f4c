"""Races about every write that is not "done", and about people, and the guard in the SQL that each needs.

- Commit order: ``queries.unpublished`` compares bits and rows; no watermark, whatever order transactions commit in.
- Late writers: each write's condition (pending, and the attempts that the writer saw) is checked again under the lock.
- Running jobs: ``SKIP LOCKED`` in ``compare_and_set.compare_and_set``: no write waits for a job that runs.
- Dead workers: ``sessions`` ends the backend of a dead worker, by number *and* name.
- Cancel: ``insert`` shares no constraint; ``control.cancel`` asks by an insert-only row, ``acquire._NOT_CANCELLED``.
- Candidates: ``candidates.candidates`` takes no lock.
"""

from __future__ import annotations

import os
import signal
from uuid import UUID

import pytest

from sidestream.job.job import MAX_CRASHES, Job
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.states import State
from sidestream.store import acquire, control, outcomes, queries, sessions
from sidestream.store.adapter import SERIALIZATION_FAILURE, sqlstate
from sidestream.store.insert import insert_done
from sidestream.store.locks import job_lock, lock_tag, unlock_tag
from tests.integration.store.conftest import Connect
from tests.integration.store.sessions import ERRORS, Session, beside, due_jobs, until_busy, until_gone, until_waiting

WRITES = {
    "fail_attempt": lambda session, job, seen: outcomes.fail_attempt(session.cur, job, seen, 5, "It failed."),
    "fail_job": lambda session, job, seen: outcomes.fail_job(session.cur, job, seen, "It can never work."),
    "crash": lambda session, job, seen: outcomes.crash(session.cur, job, seen, "It crashed.", MAX_CRASHES),
    "suspect": lambda session, job, seen: outcomes.suspect(session.cur, job, seen),
    "count": lambda session, job, seen: outcomes.count_releases(session.cur, job, 1, Reason(ReasonCode.LOCKED), 1000),
    "cancel": lambda session, job, seen: control.cancel(session.cur, job),
    "retry": lambda session, job, seen: control.retry(session.cur, job),
    "run_now": lambda session, job, seen: control.run_now(session.cur, job),
}
DIRECT = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def test_a_transaction_that_commits_late_is_found_below_ids_that_were_compared(a: Session, b: Session) -> None:
    a.begin()
    late = a.one()
    early = b.one()
    known = bytes([0b1000_0000 >> early])
    assert [job.id for job in queries.unpublished(b.cur, 0, b"")] == [early]
    a.commit()
    assert [job.id for job in queries.unpublished(b.cur, 0, known)] == [late]


@pytest.mark.parametrize("write", ["fail_attempt", "fail_job", "crash", "suspect"])
def test_a_done_job_is_neither_made_pending_nor_charged(a: Session, b: Session, write: str) -> None:
    job = a.one()
    a.done(job)
    before = b.row(job, "*")
    written = WRITES[write](b, job, 0)
    assert (written.applied, written.locked, written.state, written.terminal) == (False, False, State.DONE, True)
    assert b.row(job, "*") == before


@pytest.mark.parametrize("write", ["fail_attempt", "fail_job", "crash", "suspect"])
def test_a_late_writer_of_an_older_attempt_changes_nothing(a: Session, b: Session, write: str) -> None:
    job = a.one()
    assert outcomes.fail_attempt(a.cur, job, 0, 0, "It failed.").applied
    before = b.row(job, "*")
    written = WRITES[write](b, job, 0)
    assert (written.applied, written.superseded, written.attempts) == (False, True, 1)
    assert b.row(job, "*") == before


@pytest.mark.parametrize("write", ["fail_attempt", "fail_job", "crash", "suspect", "count", "cancel", "run_now"])
def test_no_write_waits_for_a_job_that_runs(a: Session, b: Session, write: str) -> None:
    job = a.one()
    a.hold(job)
    before = b.row(job, "*")
    assert WRITES[write](b, job, 0).locked
    assert b.row(job, "*") == before
    a.rollback()
    assert WRITES[write](b, job, 0).applied


@pytest.mark.parametrize("write", ["count", "cancel"])
def test_a_job_between_two_of_its_transactions_runs(a: Session, b: Session, write: str) -> None:
    """Its worker's own writes follow the end of its session; these two come from anywhere."""
    job = a.one()
    assert lock_tag(a.cur, job_lock(job))
    before = b.row(job, "*")
    assert WRITES[write](b, job, 0).locked
    assert b.row(job, "*") == before
    assert unlock_tag(a.cur, job_lock(job))
    assert WRITES[write](b, job, 0).applied


@pytest.mark.parametrize(
    "write", ["fail_attempt", "fail_job", "crash", "suspect", "count", "cancel", "retry", "run_now"]
)
def test_a_row_that_is_gone_is_missing(a: Session, write: str) -> None:
    written = WRITES[write](a, 10_000, 0)
    assert (written.applied, written.locked, written.missing, written.terminal) == (False, False, True, True)


def test_two_workers_charge_one_crash_once(a: Session, b: Session) -> None:
    job = a.one()
    a.begin()
    assert outcomes.crash(a.cur, job, 0, "It crashed.", MAX_CRASHES).applied
    assert outcomes.crash(b.cur, job, 0, "It crashed.", MAX_CRASHES).locked
    a.commit()
    assert outcomes.crash(b.cur, job, 0, "It crashed.", MAX_CRASHES).superseded
    assert b.row(job) == ("pending", 1, 1)


def test_the_condition_is_checked_again_under_the_lock(a: Session, b: Session) -> None:
    """The row changes between the writer's snapshot and its lock; READ COMMITTED reads it anew."""
    job = a.one()
    b.execute(
        """CREATE OR REPLACE FUNCTION pg_temp.meet() RETURNS boolean LANGUAGE plpgsql AS $$
           BEGIN PERFORM pg_advisory_lock_shared(77); PERFORM pg_advisory_unlock_shared(77); RETURN true; END $$"""
    )
    a.execute("SELECT pg_advisory_lock(77)")
    statement = outcomes._FAIL_ATTEMPT.replace("WHERE id =", "WHERE pg_temp.meet() AND id =", 1)
    b.execute("SET lock_timeout = '20s'")
    writing = beside(
        lambda: outcomes.write(b.cur, statement, {"id": job, "seen": 0, "delay": 0.0, "error": "It failed."})
    )
    until_waiting(a, b.pid)
    assert outcomes.fail_attempt(a.cur, job, 0, 0, "It failed first.").applied
    a.execute("SELECT pg_advisory_unlock(77)")
    assert not writing.result(20).applied
    assert a.row(job, "attempts, error") == (1, "It failed first.")


def test_the_third_crash_is_the_end(a: Session) -> None:
    job = a.one()
    for seen in range(MAX_CRASHES - 1):
        written = outcomes.crash(a.cur, job, seen, "It crashed.", MAX_CRASHES)
        assert (written.applied, written.failed) == (True, False)
    written = outcomes.crash(a.cur, job, MAX_CRASHES - 1, "It crashed again.", MAX_CRASHES)
    assert (written.applied, written.failed, written.terminal) == (True, True, True)
    assert a.row(job, "state, attempts, crashes, error") == ("failed", 3, 3, "It crashed again.")
    assert a.row(job, "ended_at IS NOT NULL") == (True,)


def test_a_suspicion_charges_nothing_until_it_is_confirmed(a: Session) -> None:
    job = a.one()
    assert outcomes.suspect(a.cur, job, 0).applied
    assert a.row(job, "state, attempts, crashes, suspects") == ("pending", 0, 0, 1)
    assert a.hold(job).suspects == 1
    a.rollback()
    assert outcomes.crash(a.cur, job, 0, "It crashed, alone.", MAX_CRASHES).applied
    assert a.row(job, "attempts, crashes, suspects") == (1, 2, 0)


def test_a_failure_clears_the_suspicion(a: Session) -> None:
    job = a.one()
    assert outcomes.suspect(a.cur, job, 0).applied
    assert outcomes.fail_attempt(a.cur, job, 0, 0, "It failed.").applied
    assert a.row(job, "attempts, crashes, suspects") == (1, 0, 0)


def test_the_ended_backend_of_a_dead_worker_releases_its_rows(a: Session, b: Session) -> None:
    job = a.one()
    a.execute("SET application_name = 'sidestream/host-1/0'")
    a.hold(job)
    asleep = beside(lambda: a.execute("SELECT pg_sleep(60)"))  # SIGKILLed in the middle of a statement
    until_busy(b, a.pid)
    assert b.acquire_row(job) == acquire.Locked()
    b.rollback()
    assert sessions.terminate_backend(b.cur, a.pid, "sidestream/host-1/0")
    assert isinstance(b.acquire_row(job), acquire.Acquired)  # at once: it waits until the backend is gone
    assert isinstance(asleep.exception(10), ERRORS)


def test_a_backend_that_does_not_end_is_not_called_gone(a: Session, b: Session) -> None:
    os.kill(a.pid, signal.SIGSTOP)
    try:
        assert not sessions.terminate_backend(b.cur, a.pid, "test", patience=0.05)
    finally:
        os.kill(a.pid, signal.SIGCONT)
    until_gone(b, a.pid)
    assert sessions.terminate_backend(b.cur, a.pid, "test")


def test_a_reused_process_number_is_spared(a: Session, b: Session) -> None:
    a.execute("SET application_name = 'the accountant'")
    assert sessions.terminate_backend(b.cur, a.pid, "sidestream/host-1/0")
    assert sessions.terminate_backend(b.cur, b.pid, "test")  # never oneself
    assert a.value("SELECT 1") == 1


def test_a_dead_workers_sessions_are_ended_and_no_others(connect: Connect, b: Session) -> None:
    theirs, almost, ours = connect(), connect(), b
    theirs.execute("SET application_name = 'sidestream/host_1/3'")
    almost.execute("SET application_name = 'sidestream/host_10/3'")
    ours.execute("SET application_name = 'sidestream/host_1/maintenance'")
    assert sessions.terminate_worker(ours.cur, "host_1") == (True, 1)
    until_gone(ours, theirs.pid)
    assert almost.value("SELECT 1") == 1
    assert sessions.terminate_worker(ours.cur, "host_1") == (True, 0)


def test_enqueue_waits_for_nobodys_rows(a: Session, b: Session) -> None:
    held = a.one(key="k")
    a.hold(held)
    mine = a.one(key="k")  # uncommitted
    b.begin()
    theirs = b.one(key="k")
    b.commit()
    a.commit()
    assert held < mine < theirs


def test_cancelling_a_running_job_asks_for_it_once(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    b.begin()  # as in a person's request
    assert control.cancel(b.cur, job).locked
    assert control.cancel(b.cur, job).locked
    b.commit()
    [request] = control.pending(b.cur)
    assert (request.job_id, request.request, request.state) == (job, "cancel", State.PENDING)
    a.rollback()  # its process was killed for it
    assert a.acquire_row(job) == acquire.Cancelling()
    a.rollback()
    assert control.cancel(b.cur, job).applied
    assert control.handled(b.cur, request.id)
    assert not control.handled(b.cur, request.id)
    assert (control.pending(b.cur), b.row(job)[0]) == ([], "cancelled")


def test_a_cancel_that_comes_too_late_changes_nothing(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    assert control.cancel(b.cur, job).locked
    outcomes.finish(a.cur, job)
    a.commit()
    [request] = control.pending(b.cur)
    assert request.state is State.DONE
    written = control.cancel(b.cur, job)
    assert (written.applied, written.locked, written.state) == (False, False, State.DONE)
    assert control.handled(b.cur, request.id)


def test_two_workers_handle_a_cancel_request_without_waiting(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    control.cancel(b.cur, job)
    a.rollback()
    [request] = control.pending(b.cur)
    a.begin()
    assert control.handled(a.cur, request.id)
    assert not control.handled(b.cur, request.id)
    a.commit()


def test_a_person_changes_an_ended_job_without_waiting(a: Session, b: Session) -> None:
    job = a.one()
    assert outcomes.fail_job(a.cur, job, 0, "It can never work.").applied
    a.begin()
    a.execute("SELECT FROM sidestream_job WHERE id = %(id)s FOR UPDATE", {"id": job})
    assert control.retry(b.cur, job).locked
    a.rollback()
    assert control.retry(b.cur, job).applied


def test_candidates_are_read_without_a_lock(a: Session, b: Session) -> None:
    running, free = a.one(), a.one()
    a.hold(running)
    assert [job.id for job in due_jobs(b.cur, ["default"], 10)] == [running, free]
    assert [job.id for job in due_jobs(b.cur, ["default"], 10, excluded=[running])] == [free]
    assert b.value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode LIKE 'Row%%'", {}) == 0


def test_two_deliveries_of_a_direct_job_commit_one_effect(a: Session, b: Session) -> None:
    """Promise 3 for direct jobs: the unique uuid, in the effect's own transaction."""
    job = Job("test.act", uuid=DIRECT)
    for session in (a, b):
        session.begin()
        assert not acquire.inbox_has(session.cur, DIRECT)
    assert insert_done(a.cur, job)
    b.execute("SET lock_timeout = '20s'")
    second = beside(lambda: insert_done(b.cur, job))
    until_waiting(a, b.pid)
    a.commit()
    error = second.exception(20)
    assert isinstance(error, ERRORS)
    assert sqlstate(error) == SERIALIZATION_FAILURE
    b.rollback()
    assert acquire.inbox_has(b.cur, DIRECT)
    assert not insert_done(b.cur, job)
