"""The write side, one session at a time: what is inserted, charged, counted and ended."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psutil
import pytest

from sidestream.errors import InvalidJob, PayloadNotJson
from sidestream.job.job import Job, Unique
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.job.states import State
from sidestream.store import acquire, attempts, control, outcomes, queries, retention, schema
from sidestream.store.insert import insert, insert_done
from tests.integration.store.conftest import Connect
from tests.integration.store.sessions import Session, due_jobs

DAY = 86_400
ZONES = ["Asia/Kolkata", "Pacific/Kiritimati", "America/Adak"]
"""UTC+5:30, UTC+14 and UTC-10."""


def test_insert_gives_ascending_ids_in_the_order_of_the_jobs(a: Session) -> None:
    now = datetime.now(UTC)
    due = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    jobs = [Job("act.one", (1,), key="k"), Job("act.two", kwargs={"x": [None]}, queue="other", run_at=due)]
    stored = a.insert(*jobs)
    assert [(job.id, job.action, job.queue, job.key) for job in stored] == [
        (1, "act.one", "default", "k"),
        (2, "act.two", "other", None),
    ]
    assert abs(stored[0].run_at - now) < timedelta(minutes=1)
    assert stored[1].run_at == due
    database = schema.identify(a.cur)
    reference = Reference.unpack(stored[0].reference(database))
    assert (reference.database, reference.id) == (database.tag, 1)
    assert stored[1].due_ms == int(due.timestamp() * 1000)
    assert a.insert() == []


def test_what_cannot_be_a_row_leaves_no_row(a: Session) -> None:
    with pytest.raises(PayloadNotJson):
        a.insert(Job("act.one"), Job("act.two", (object(),)))
    with pytest.raises(InvalidJob, match="no time zone"):
        a.insert(Job("act.one", run_at=datetime(2030, 1, 1)))  # noqa: DTZ001
    assert a.value("SELECT count(*) FROM sidestream_job") == 0


def test_ten_thousand_jobs_are_one_statement_and_quick(a: Session) -> None:
    jobs = [Job("act.one", (n, "some text"), {"n": n}, key=f"k{n % 100}" if n % 2 else None) for n in range(10_000)]
    backend = psutil.Process(a.pid)

    def used() -> float:
        """Seconds of processor time, here and in PostgreSQL: others use the machine too."""
        theirs = backend.cpu_times()
        return time.process_time() + theirs.user + theirs.system

    took = []
    while min(took, default=1) >= 0.7 and len(took) < 10:
        began = used()
        stored = a.insert(*jobs)
        took.append(used() - began)
        ids = [job.id for job in stored]
        assert ids == list(range(ids[0], ids[0] + 10_000))
    assert min(took) < 0.7
    [(first, last)] = a.all("SELECT payload, key FROM sidestream_job WHERE id = %(id)s", {"id": ids[-1]})
    assert (first, last) == ('{"v":1,"args":[9999,"some text"],"kwargs":{"n":9999}}', "k99")


def test_a_savepoint_that_is_rolled_back_leaves_no_ghost(a: Session) -> None:
    a.begin()
    kept = a.one()
    a.execute("SAVEPOINT s")
    ghost = a.one()
    a.execute("ROLLBACK TO SAVEPOINT s")
    a.commit()
    assert isinstance(a.acquire_row(ghost), acquire.Missing)
    assert isinstance(acquire.acquire_job(a.cur, kept), acquire.Acquired)


def test_a_savepoint_inside_the_job_does_not_lose_it(a: Session) -> None:
    job = a.one()
    a.hold(job)
    a.execute("SAVEPOINT s")
    a.one()
    a.execute("ROLLBACK TO SAVEPOINT s")
    outcomes.finish(a.cur, job)
    a.commit()
    assert a.row(job)[0] == "done"


def test_finish_forgets_what_went_wrong_before(a: Session) -> None:
    job = a.one()
    assert outcomes.fail_attempt(a.cur, job, 0, 0, "It failed.").applied
    a.done(job)
    assert a.row(job, "state, attempts, error, reason, ended_at >= run_at") == ("done", 1, None, None, True)


def test_a_failure_charges_and_delays(a: Session) -> None:
    job = a.one()
    written = outcomes.fail_attempt(a.cur, job, 0, 90, "It failed: \x00 and \ud800.")
    assert (written.applied, written.state, written.attempts, written.terminal) == (True, State.PENDING, 1, False)
    found = a.acquire_row(job)
    assert isinstance(found, acquire.NotDue)
    assert 60 < found.seconds <= 90
    assert found.started
    assert a.row(job, "error") == ("It failed: \\x00 and \\ud800.",)


def test_bury_may_leave_the_attempt_uncharged(a: Session) -> None:
    first, second = a.one(), a.one()
    assert outcomes.fail_job(a.cur, first, 0, "It can never work.").failed
    assert outcomes.fail_job(a.cur, second, 0, "Nobody may run it.", charge_attempt=False).failed
    assert (a.row(first)[:2], a.row(second)[:2]) == (("failed", 1), ("failed", 0))


def test_a_job_that_is_released_too_often_fails_with_the_reason(a: Session) -> None:
    job = a.one()
    for releases in (1, 10, 20):
        assert not outcomes.count_releases(a.cur, job, releases, Reason(ReasonCode.LOCKED), 30).terminal
    assert a.row(job, "state, releases, reason") == ("pending", 20, "locked")
    assert outcomes.count_releases(a.cur, job, 30, Reason(ReasonCode.CONFLICT), 30).failed
    state, error, ended = a.row(job, "state, error, ended_at IS NOT NULL")
    assert (state, ended) == ("failed", True)
    assert error.startswith("It was released 30 times since 20")
    assert error.endswith("the last reason: it conflicted with other transactions repeatedly")


def test_the_count_goes_on_when_the_broker_begins_anew(a: Session) -> None:
    job = a.one()
    counted = []
    for releases in (1, 10, 20, 1, 10, 10):
        outcomes.count_releases(a.cur, job, releases, Reason(ReasonCode.LOCKED), 1000)
        counted.append(a.row(job, "releases")[0])
    assert counted == [1, 10, 20, 21, 31, 41]


def test_a_job_that_is_released_for_a_day_fails(a: Session) -> None:
    often, seldom = a.one(), a.one()
    for job, releases in ((often, 10), (seldom, 1)):
        outcomes.count_releases(a.cur, job, releases, Reason(ReasonCode.LOCKED), 1000)
    a.execute("UPDATE sidestream_job SET released_since = released_since - interval '23 hours'")
    assert not outcomes.count_releases(a.cur, often, 20, Reason(ReasonCode.LOCKED), 1000).failed
    a.execute("UPDATE sidestream_job SET released_since = released_since - interval '1 hour'")
    assert outcomes.count_releases(a.cur, often, 30, Reason(ReasonCode.LOCKED), 1000).failed
    waiting = Reason(ReasonCode.BLOCKED)
    assert not outcomes.count_releases(a.cur, seldom, 2, waiting, 1000).failed, "waiting for its turn is no fault"


def test_a_start_that_was_charged_or_a_later_date_begins_the_count_anew(a: Session) -> None:
    charged, moved = a.one(), a.one()
    for job in (charged, moved):
        outcomes.count_releases(a.cur, job, 20, Reason(ReasonCode.LOCKED), 1000)
    assert outcomes.fail_attempt(a.cur, charged, 0, 0, "It failed.").applied
    a.execute("UPDATE sidestream_job SET run_at = run_at + interval '1 day' WHERE id = %(id)s", {"id": moved})
    assert outcomes.count_releases(a.cur, moved, 2000, Reason(ReasonCode.NOT_DUE), 1000).state is State.PENDING
    for job in (charged, moved):
        assert a.row(job, "releases, released_since") == (0, None)


def test_an_inbox_row_is_written_once(a: Session) -> None:
    uuid = uuid4()
    job = Job("act.one", (1,), uuid=uuid, attempts=2, crashes=1)
    assert not acquire.inbox_has(a.cur, uuid)
    assert insert_done(a.cur, job)
    assert not insert_done(a.cur, job)
    assert acquire.inbox_has(a.cur, uuid)
    assert a.all("SELECT uuid::text, state, attempts, crashes, ended_at IS NOT NULL FROM sidestream_job") == [
        (str(uuid), "done", 2, 1, True)
    ]
    with pytest.raises(InvalidJob, match="uuid"):
        insert_done(a.cur, Job("act.one"))


def test_a_persons_retry_forgives_but_keeps_the_mark(a: Session) -> None:
    job = a.one(key="k")
    assert outcomes.crash(a.cur, job, 0, "It crashed.", 3).applied
    assert outcomes.fail_job(a.cur, job, 1, "It can never work.").applied
    assert control.retry(a.cur, job).applied
    assert a.row(job, "state, attempts, forgiven, crashes, ended_at, error") == (
        "pending",
        2,
        2,
        0,
        None,
        "It can never work.",
    )
    acquired = a.hold(job)
    assert (acquired.attempts, acquired.forgiven) == (2, 2)
    a.rollback()
    assert outcomes.fail_attempt(
        a.cur, job, 0, 0, "From long ago."
    ).superseded  # a reset to 0 would have let this through
    assert control.retry(a.cur, job).superseded
    a.done(job)
    assert control.retry(a.cur, job).state is State.DONE


def test_a_retry_keeps_the_time_of_a_job_that_was_cancelled_before_it(a: Session) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    early, begun = a.one(run_at=later), a.one(run_at=later)
    before = a.row(early, "run_at")
    assert outcomes.fail_attempt(a.cur, begun, 0, 3600, "Boom.").applied
    for job in (early, begun):
        assert control.cancel(a.cur, job).applied
        assert control.retry(a.cur, job).applied
    assert a.row(early, "run_at") == before
    assert a.row(begun, "run_at <= clock_timestamp() AT TIME ZONE 'UTC'") == (True,)


def test_a_retry_takes_back_the_wish_to_cancel(a: Session, b: Session) -> None:
    job = a.one()
    a.hold(job)
    assert control.cancel(b.cur, job).locked
    a.rollback()
    assert outcomes.fail_job(b.cur, job, 0, "It can never work.").applied
    assert control.retry(b.cur, job).applied
    assert isinstance(a.acquire_row(job), acquire.Acquired)


def test_run_now_never_delays(a: Session) -> None:
    job, later = a.one(), a.one(run_at=datetime.now(UTC) + timedelta(days=1))
    before = a.row(job, "run_at")
    assert control.run_now(a.cur, job).applied
    assert a.row(job, "run_at") == before
    assert control.run_now(a.cur, later).applied
    assert isinstance(a.acquire_row(later), acquire.Acquired)


def test_attempts_tell_what_a_dead_supervisor_left_open(a: Session) -> None:
    running, failed, done, elsewhere, again = (a.one() for _ in range(5))
    for job in (running, failed, done, again):
        attempts.record(a.cur, job, "host-1", 0, "started", "alone")
    attempts.record(a.cur, elsewhere, "host-2", 0, "started")
    attempts.record(a.cur, failed, "host-1", 0, "failed", "It failed.\x00")
    attempts.record(a.cur, again, "host-1", 0, "failed")
    attempts.record(a.cur, again, "host-1", 1, attempts.Event.STARTED)
    attempts.record(a.cur, again, "host-1", 1, attempts.Event.STARTED)
    a.done(done)
    assert attempts.unfinished(a.cur, "host-1") == {running, again}
    [first, second] = attempts.of_job(a.cur, failed)
    assert (first.event, first.worker, first.slot, first.detail) == (attempts.Event.STARTED, "host-1", 0, "alone")
    assert (second.event, second.detail) == ("failed", "It failed.\\x00")
    assert abs(second.at - datetime.now(UTC)) < timedelta(minutes=1)
    with pytest.raises(ValueError, match="napping"):
        attempts.record(a.cur, running, "host-1", 0, "napping")


@pytest.mark.parametrize("zone", ZONES)
def test_the_sessions_time_zone_changes_nothing(connect: Connect, zone: str) -> None:
    """Guard: ``AT TIME ZONE 'UTC'`` wherever ``now`` meets a column, in statements and in the columns' defaults."""
    a = connect(TimeZone=zone)
    now = datetime.now(UTC)
    minute = timedelta(minutes=1)
    [plain, soon, later] = a.insert(
        Job("act.one"), Job("act.one", run_at=now - minute), Job("act.one", run_at=now + 2 * minute)
    )
    assert abs(plain.run_at - now) < minute
    assert later.due_ms == int((now + 2 * minute).timestamp() * 1000)
    a.begin()
    assert isinstance(acquire.acquire_job(a.cur, plain.id), acquire.Acquired)
    assert isinstance(acquire.acquire_job(a.cur, soon.id), acquire.Acquired)
    not_due = acquire.acquire_job(a.cur, later.id)
    assert isinstance(not_due, acquire.NotDue)
    assert 100 < not_due.seconds <= 120
    assert not not_due.started
    a.rollback()
    assert [job.id for job in due_jobs(a.cur, ["default"], 10)] == [soon.id, plain.id]
    assert [job.id for job in queries.unpublished(a.cur, 0, b"", 0, now + minute)] == [plain.id, soon.id]
    assert [job.id for job in queries.overdue(a.cur, 30)] == [soon.id]
    assert outcomes.fail_attempt(a.cur, plain.id, 0, 60, "It failed.").applied
    assert outcomes.fail_job(a.cur, soon.id, 0, "It can never work.").applied
    attempts.record(a.cur, plain.id, "host-1", 0, "failed")
    for job_id in (plain.id, soon.id):
        found = queries.job(a.cur, job_id)
        assert found is not None
        row, _, events = found
        moments = [row.created_at, row.ended_at or now, *(event.at for event in events)]
        assert all(abs(moment - now) < minute for moment in moments)
    inbox = Job("act.one", uuid=uuid4())
    assert insert_done(a.cur, inbox)
    a.done(a.one())
    [(spread,)] = a.all("SELECT max(ended_at) - min(ended_at) FROM sidestream_job")
    assert spread < minute


def test_a_job_is_one_insert_and_one_update_of_one_row(a: Session) -> None:
    counted = """SELECT relname, n_tup_ins::int, n_tup_upd::int, n_tup_del::int FROM pg_stat_xact_user_tables
                 WHERE relname LIKE 'sidestream%%' AND n_tup_ins + n_tup_upd + n_tup_del > 0"""
    a.begin()
    [job] = a.insert(Job("act.one", key="k"))
    assert a.all(counted, {}) == [("sidestream_job", 1, 0, 0)]
    a.commit()
    a.begin()
    [(_, inserts, updates, deletes)] = a.all(counted, {})  # what the session did before is not reported yet
    acquire.acquire_job(a.cur, job.id)
    outcomes.finish(a.cur, job.id)
    assert a.all(counted, {}) == [("sidestream_job", inserts, updates + 1, deletes)]
    a.commit()


def test_done_writes_to_no_index_but_the_primary_key_and_those_for_searches(a: Session) -> None:
    """Guard: an index whose condition does not end with the job costs WAL for each job and grows with those done."""
    kinds = """SELECT c.relname, am.amname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
               JOIN pg_am am ON am.oid = c.relam WHERE i.indrelid = 'sidestream_job'::regclass AND i.indpred IS NULL"""
    assert dict(a.all(kinds, {})) == {
        "sidestream_job_pkey": "btree",
        # 179 B of WAL a job. Bloom filters in its place answer in up to 280 ms beside a million jobs, not in 1.
        "sidestream_job_action": "btree",
        "sidestream_job_search": "brin",  # written once for 32 pages, not for a job
    }


def everything(session: Session, statement: str) -> list[Any]:
    session.cur.execute(statement)
    return list(session.cur.fetchall())


@pytest.mark.parametrize("more", [0, 1], ids=["alone", "with another"])
@pytest.mark.parametrize("unique", [None, Unique("once")], ids=["plain", "unique"])
@pytest.mark.parametrize("records", [(), (5,), (5, 6, 5)], ids=["none", "one", "one of them twice"])
def test_each_way_to_insert_links_a_job_to_each_record_once(
    a: Session, records: tuple[int, ...], unique: Unique | None, more: int
) -> None:
    about = Job("test.act", unique=unique, records=("sale.order", records))
    stored, *_ = insert(a.cur, [about, *[Job("test.act", records=("sale.order", (7,)))] * more])
    links = everything(a, f"SELECT record_id FROM sidestream_job_record WHERE job_id = {stored.id} ORDER BY record_id")
    assert [one for (one,) in links] == sorted(set(records))
    [(total,)] = everything(a, "SELECT count(*) FROM sidestream_job_record")
    assert total == len(links) + more


def test_jobs_of_one_call_are_linked_to_records_of_their_own_models(a: Session) -> None:
    about = [("sale.order", (5, 6)), ("res.partner", (5,)), None, ("sale.order", (5,))]
    stored = insert(a.cur, [Job("test.act", records=records) for records in about])
    links = everything(a, "SELECT model, record_id, job_id FROM sidestream_job_record ORDER BY job_id, record_id")
    first, second, _, last = (one.id for one in stored)
    assert links == [
        ("sale.order", 5, first), ("sale.order", 6, first), ("res.partner", 5, second), ("sale.order", 5, last)
    ]  # fmt: skip


def test_a_duplicate_that_is_about_other_records_links_them_to_the_job_that_is_there(a: Session) -> None:
    for record in (5, 6, 6):
        [stored] = insert(a.cur, [Job("test.act", unique=Unique("once"), records=("sale.order", (record,)))])
    links = everything(a, "SELECT record_id, job_id FROM sidestream_job_record ORDER BY record_id")
    assert links == [(5, stored.id), (6, stored.id)]


def test_a_job_is_found_by_its_records_until_it_is_pruned(a: Session) -> None:
    about = Job("test.act", company_id=3, user_id=7, context='{"lang": "fr_FR"}', records=("sale.order", (5, 6, 5)))
    stored, other = insert(a.cur, [about, Job("test.act")])
    links = everything(a, "SELECT model, record_id, job_id FROM sidestream_job_record ORDER BY record_id")
    assert links == [("sale.order", 5, stored.id), ("sale.order", 6, stored.id)]
    kept = everything(a, "SELECT company_id, user_id, context FROM sidestream_job ORDER BY id")
    assert kept == [(3, 7, '{"lang": "fr_FR"}'), (None, None, None)]
    a.execute(
        "UPDATE sidestream_job SET state = 'done', created_at = created_at - interval '9 days', "
        "ended_at = created_at - interval '8 days'"
    )
    assert retention.prune(a.cur, 1 * DAY, None, 100) == 2
    assert everything(a, "SELECT * FROM sidestream_job_record") == []
    assert other.id == stored.id + 1
