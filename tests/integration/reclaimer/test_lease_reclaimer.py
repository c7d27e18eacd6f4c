"""The reclaimer on a real PostgreSQL and a real Valkey: what dead workers held comes back, and who is charged."""

from __future__ import annotations

import psycopg
import pytest

from sidestream.errors import StoreError, StoreUnavailable
from sidestream.job.job import MAX_CRASHES
from sidestream.job.reference import Reference
from sidestream.store import attempts, deaths
from sidestream.store.locks import job_lock, number, running_jobs
from tests.integration.reclaimer.conftest import DEAD, LEASE, RENEW, US, Bench, charges
from tests.support.servers import PostgresServer


def test_nothing_is_taken_before_its_lease_ran_out(bench: Bench) -> None:
    bench.insert(3)
    held = bench.claim(DEAD)
    for _ in range(40):
        bench.clock.advance(RENEW)
        assert bench.broker.renew(DEAD, [delivery.lease for delivery in held]) == []
        bench.step()
    assert bench.claimable() == []


def test_what_was_claimed_and_did_not_run_comes_back_uncharged(bench: Bench) -> None:
    ids = bench.insert(3)
    bench.claim(DEAD)
    bench.die()
    bench.run_out()
    back = bench.claim("next")
    assert [(Reference.unpack(d.reference).id, d.releases) for d in back] == [(row_id, 0) for row_id in ids]
    assert [charges(bench.row(row_id)) for row_id in ids] == [(0, 0, 0)] * 3


def test_what_ran_among_others_is_suspected_and_bystanders_are_not(bench: Bench) -> None:
    ids = bench.insert(50)
    bench.claim(DEAD)
    bench.die(bench.reference(ids[3]), bench.reference(ids[7]))
    bench.run_out()
    suspected = [row_id for row_id in ids if bench.row(row_id).suspects]
    assert suspected == [ids[3], ids[7]]
    assert all(charges(bench.row(row_id))[:2] == (0, 0) for row_id in ids)
    assert bench.claimable() == ids


def test_with_unknown_slots_all_are_suspected(bench: Bench) -> None:
    ids = bench.insert(3)
    bench.claim(DEAD)
    bench.die(known=False)
    bench.run_out()
    assert [charges(bench.row(row_id)) for row_id in ids] == [(0, 0, 1)] * 3
    assert bench.claimable() == ids


@pytest.mark.parametrize("known", [True, False])
def test_what_ran_alone_is_charged_with_a_crash(bench: Bench, known: bool) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.start_alone(row_id)
    bench.die(bench.reference(row_id), known=known)
    bench.run_out()
    assert charges(bench.row(row_id)) == (1, 1, -1)
    assert bench.history(row_id) == [("started", DEAD), ("crashed", DEAD)]
    assert bench.claimable() == [row_id]


def test_a_start_alone_that_had_ended_is_not_charged(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.start_alone(row_id)
    with bench.connection.cursor() as cursor:
        attempts.record(cursor, row_id, DEAD, 0, "released", "conflict")
    bench.die(known=False)
    bench.run_out()
    assert charges(bench.row(row_id)) == (0, 0, 1)


def test_a_job_that_kills_its_host_runs_at_most_three_times(bench: Bench) -> None:
    """The first death makes a suspect, the next ones, alone, charge it; in the end it is dead and settled."""
    [row_id] = bench.insert()
    for death in range(MAX_CRASHES):
        worker = f"host-{death}"
        assert [d.reference for d in bench.claim(worker)] == [bench.reference(row_id)], f"before death {death}"
        if death:
            bench.start_alone(row_id, worker)
        bench.run_out()
    row = bench.row(row_id)
    assert (row.state.value, row.crashes) == ("failed", MAX_CRASHES)
    assert row.error is not None
    assert "died while it ran there alone" in row.error
    assert bench.claimable() == []
    assert bench.broker.published(bench.database.tag, 0).strip(b"\0") == b"", "settled, not only dead"


@pytest.mark.parametrize(("failed", "max_attempts"), [(0, 1), (0, 2), (4, 5)])
def test_a_job_that_kills_its_host_gets_no_more_attempts_than_its_action_allows(
    bench: Bench, failed: int, max_attempts: int
) -> None:
    [row_id] = bench.insert()
    bench.connection.execute("UPDATE sidestream_job SET attempts = %s", [failed])
    for death in range(max_attempts - failed):
        assert [d.reference for d in bench.claim(f"host-{death}")] == [bench.reference(row_id)]
        bench.start_alone(row_id, f"host-{death}", max_attempts)
        bench.run_out()
    row = bench.row(row_id)
    assert (row.state, row.attempts) == ("failed", max_attempts)
    assert bench.claimable() == []


def test_a_job_that_kills_its_host_among_others_ends_with_the_third_death_and_they_are_not_charged(
    bench: Bench,
) -> None:
    """It runs beside others all the time; what tells it from them is that it alone was accused the third time."""
    poison, unlucky, *fresh = bench.insert(5)
    for death in range(MAX_CRASHES):
        worker, here = f"host-{death}", {poison, fresh[death]} | ({unlucky} if death < 2 else set())
        bench.claim(worker)
        if death == 2:
            bench.start_alone(poison, worker)  # both are accused, and only one of those runs at a time
        bench.die(*map(bench.reference, here), worker=worker)
        bench.run_out()
    assert charges(bench.row(poison))[1] == MAX_CRASHES
    assert bench.row(poison).state.value == "failed"
    assert charges(bench.row(unlucky)) == (0, 0, 2)
    assert [charges(bench.row(row_id)) for row_id in fresh] == [(0, 0, 1)] * 3


def test_a_row_at_its_end_is_settled(bench: Bench) -> None:
    done, gone = bench.insert(2)
    bench.claim(DEAD)
    bench.connection.execute("UPDATE sidestream_job SET state = 'done' WHERE id = %s", (done,))
    bench.connection.execute("DELETE FROM sidestream_job WHERE id = %s", (gone,))
    bench.die(bench.reference(done), bench.reference(gone))
    bench.run_out()
    assert bench.claimable() == []
    assert bench.broker.published(bench.database.tag, 0).strip(b"\0") == b""
    assert charges(bench.row(done)) == (0, 0, 0)


def test_sessions_of_the_dead_are_ended_before_their_jobs_come_back(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.die(bench.reference(row_id))
    orphan, other = bench.session(DEAD), bench.session("host-3-alive")
    orphan.execute("BEGIN")
    orphan.execute("SELECT FROM sidestream_job WHERE id = %s FOR NO KEY UPDATE", (row_id,))
    bench.run_out()
    with pytest.raises(psycopg.OperationalError):
        orphan.execute("SELECT 1")
    orphan.close()
    other.execute("SELECT 1")
    other.close()
    assert bench.row(row_id).suspects == 1
    assert bench.claimable() == [row_id]


def test_what_we_lost_ourselves_ends_no_session_of_ours(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(US)
    ours = bench.session(US)
    bench.run_out()
    ours.execute("SELECT 1")
    ours.close()
    assert charges(bench.row(row_id)) == (0, 0, 0)
    assert bench.claimable() == [row_id]


def test_a_supervisor_that_is_announced_keeps_its_sessions(bench: Bench) -> None:
    """The answer to one of its claims got lost, so it renews its other jobs and not these."""
    [row_id] = bench.insert()
    bench.claim("host-3-alive")
    bench.announced.add("host-3-alive")
    other = bench.session("host-3-alive")
    bench.run_out()
    assert bench.claimable() == [], "it may be dead and its announcement not yet run out"
    bench.run_out()
    assert bench.claimable() == [row_id]
    assert charges(bench.row(row_id)) == (0, 0, 0)
    other.execute("SELECT 1")
    other.close()


@pytest.mark.parametrize("holds", ["row", "lock"])
def test_the_session_in_which_an_announced_supervisor_ran_a_lost_job_is_ended(bench: Bench, holds: str) -> None:
    """It killed the child at the hard limit, or for the lost lease, and does not reach PostgreSQL."""
    lost, other = bench.insert(2)
    alive = "host-3-alive"
    [delivery, kept] = bench.claim(alive)
    bench.announced.add(alive)
    sessions = {row_id: bench.session(alive) for row_id in (lost, other)}
    for row_id, session in sessions.items():
        if holds == "row":
            session.execute("BEGIN")
            session.execute("SELECT FROM sidestream_job WHERE id = %s FOR NO KEY UPDATE", (row_id,))
        else:
            session.execute("SELECT pg_advisory_lock(%s)", (number(job_lock(row_id)),))
    for _ in range(40):
        bench.clock.advance(LEASE / 15)
        assert bench.broker.renew(alive, [kept.lease]) == []
        bench.step()
    assert Reference.unpack(delivery.reference).id == lost
    assert bench.claimable() == [lost]
    with bench.connection.cursor() as cursor:
        assert running_jobs(cursor, [lost, other]) == {other}
    with pytest.raises(psycopg.OperationalError):
        sessions[lost].execute("SELECT 1")
    sessions[other].execute("SELECT 1")
    sessions[other].close()
    assert charges(bench.row(lost)) == (0, 0, 0)


def test_an_announcement_that_runs_out_meanwhile_tells_that_it_is_dead(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.die(bench.reference(row_id))
    bench.announced.add(DEAD)
    bench.run_out()
    assert bench.row(row_id).suspects == 0
    bench.announced.clear()
    bench.step()
    assert bench.row(row_id).suspects == 1
    assert bench.claimable() == [row_id]


def test_a_row_that_somebody_holds_waits_and_is_charged_then(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.die(bench.reference(row_id))
    form = bench.session("somebody")
    form.execute("BEGIN")
    form.execute("SELECT FROM sidestream_job WHERE id = %s FOR NO KEY UPDATE", (row_id,))
    bench.run_out(leases=3)
    assert bench.claimable() == []
    form.execute("COMMIT")
    form.close()
    bench.step()
    assert bench.row(row_id).suspects == 1
    assert bench.claimable() == [row_id]


def test_a_direct_job_is_charged_when_it_may_have_run_there(bench: Bench) -> None:
    first, second = bench.enqueue_direct(2)
    bench.claim(DEAD)
    bench.die(first)
    bench.run_out()
    assert {d.reference: d.crashes for d in bench.claim(DEAD)} == {first: 1, second: 0}
    del bench.slots[DEAD]  # nobody can read them
    bench.run_out()
    assert {d.reference: d.crashes for d in bench.claim(DEAD)} == {first: 2, second: 1}


def test_a_death_is_charged_once_whoever_finds_out_first(bench: Bench) -> None:
    """The next worker on its host does so from PostgreSQL alone; its leases run out later."""
    [row_id] = bench.insert()
    bench.claim(DEAD)
    with bench.connection.transaction(), bench.connection.cursor() as cursor:
        assert deaths.charge_all(cursor, DEAD, [row_id]) is False, "it has no row"
        assert deaths.charge_all(cursor, DEAD, [row_id]) is False, "it has no row"
    bench.run_out()
    assert (bench.row(row_id).suspects, bench.row(row_id).attempts) == (1, 0)
    assert len(bench.claim(DEAD)) == 1


def test_who_charges_a_death_keeps_the_others_waiting(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    with bench.session("other") as other, other.transaction(), other.cursor() as cursor:
        assert deaths.lock(cursor, DEAD)
        with pytest.raises(StoreError, match="charged by another worker"):
            bench.run_out()
    bench.run_out()
    assert bench.row(row_id).suspects == 1


def test_a_direct_job_that_kills_its_host_fails_at_last(bench: Bench) -> None:
    [reference] = bench.enqueue_direct()
    for _ in range(MAX_CRASHES):
        assert [d.reference for d in bench.claim(DEAD)] == [reference]
        bench.die(reference)
        bench.run_out()
    assert bench.claim(DEAD) == []


def test_without_postgresql_direct_jobs_come_back_and_rows_stay_with_us(bench: Bench, postgres: PostgresServer) -> None:
    [row_id] = bench.insert()
    [direct] = bench.enqueue_direct()
    bench.claim(DEAD)
    bench.die(bench.reference(row_id))
    postgres.kill()
    other = bench.another("host-4-other")
    refused = 0
    for _ in range(60):
        bench.clock.advance(1.0)
        try:
            bench.reclaimer.step()
        except StoreUnavailable:
            refused += 1
        other.step()
    assert refused > 40
    assert [d.reference for d in bench.claim("next")] == [direct]
    postgres.start()
    bench.connection.close()
    bench.connection = bench.session("bench")
    bench.step()
    assert bench.row(row_id).suspects == 1
    assert bench.claimable() == [row_id]
