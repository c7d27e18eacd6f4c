"""Whether a job runs now: seen from outside, without a lock that a worker could meet."""

from __future__ import annotations

from sidestream.store import attempts, diagnosis, locks, outcomes
from tests.integration.store.sessions import Session


def become_child(session: Session) -> None:
    """Name the session as a worker's child names its own: what others lock does not run."""
    session.cur.execute("SET application_name = 'sidestream/host-1/0'")


def test_it_runs_while_a_transaction_holds_its_row(a: Session, b: Session) -> None:
    become_child(a)
    job, other = a.one(), a.one()
    assert locks.running_jobs(b.cur, [job, other]) == set()
    a.hold(job)
    assert locks.running_jobs(b.cur, [job, other]) == {job}
    assert locks.running_jobs(a.cur, [job, other]) == set(), "one's own lock is no run"
    a.rollback()
    assert locks.running_jobs(b.cur, [job, other]) == set()
    a.hold(job)
    outcomes.finish(a.cur, job)
    assert locks.running_jobs(b.cur, [job, other]) == {job}, "its effect is not committed yet"
    a.commit()
    assert locks.running_jobs(b.cur, [job, other]) == set()
    assert locks.running_jobs(b.cur, []) == set()


def test_to_look_keeps_nobody_from_it(a: Session, b: Session) -> None:
    job = a.one()
    b.begin()
    assert locks.running_jobs(b.cur, [job]) == set()
    a.done(job)
    b.rollback()


def test_it_runs_between_two_of_its_transactions(a: Session, b: Session) -> None:
    job = a.one()
    lock = locks.job_lock(job)
    assert locks.lock_tag(a.cur, lock)
    assert locks.running_jobs(b.cur, [job]) == {job}
    locks.unlock_tag(a.cur, lock)
    assert locks.running_jobs(b.cur, [job]) == set()


def test_a_start_that_was_noted_is_told_only_while_it_runs(a: Session, b: Session) -> None:
    """A worker that hands a job back, or dies, does not always note it."""
    become_child(a)
    job = a.one()
    a.hold(job)
    attempts.record(b.cur, job, "host-1", 0, "started", 'running|{"seconds": 0.5}')
    found = diagnosis.diagnose(b.cur, job)
    assert found is not None
    assert found.started_by == "host-1"
    a.rollback()
    found = diagnosis.diagnose(b.cur, job)
    assert found is not None
    assert found.started_by is None
    assert found.started_at is None
