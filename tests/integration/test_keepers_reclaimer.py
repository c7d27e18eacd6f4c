"""The reclaimer on a real PostgreSQL and a real Valkey: what dead supervisors held comes back, and who is charged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from sidestream.broker.protocol import Delivery, Lease, Publication, Reclaimed, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.clock import ManualClock
from sidestream.errors import BrokerUnavailable, StoreUnavailable
from sidestream.job.job import MAX_CRASHES, Job
from sidestream.job.reference import NO_TAG8, Reference, direct_reference, row_reference
from sidestream.job.uuids import new_uuid
from sidestream.keepers.link import StoreLink
from sidestream.keepers.reclaimer import Reclaimer
from sidestream.store import attempts, queries, rows, schema
from sidestream.store.adapter import connect
from sidestream.testing.servers import PostgresServer, RedisServer

LEASE = 15.0
RENEW = 3.0
DEAD = "host-1-dead"
US = "host-2-us"


class Bench:
    """Jobs that a dead supervisor held, and the reclaimer of another one; the test moves the clock of both."""

    def __init__(self, dsn: str, redis: RedisServer) -> None:
        self.dsn = dsn
        self.redis = redis
        self.connection = self.session("bench")
        with self.connection.transaction(), self.connection.cursor() as cursor:
            self.database = schema.install(cursor)
        self.clock = ManualClock(datetime.now(UTC))
        self.lanes = [lane(self.database.tag, "default"), lane(NO_TAG8, "default")]
        self.broker = self.another_broker()
        self.broker.begin_generation()
        self.link = StoreLink(lambda: connect(dsn, f"sidestream/{US}/keepers", autocommit=True))
        #: What the slots of dead supervisors say; a supervisor that is not here is of another host.
        self.slots: dict[str, frozenset[bytes]] = {}
        self.announced: set[str] = set()
        self.reclaimer = self.another(US)

    def session(self, name: str) -> psycopg.Connection[Any]:
        return connect(self.dsn, f"sidestream/{name}/0", autocommit=True)

    def another_broker(self) -> RedisBroker:
        return RedisBroker(self.redis.url, clock_ms=lambda: int(self.clock.now().timestamp() * 1000))

    def another(self, consumer: str) -> Reclaimer:
        return Reclaimer(
            self.broker,
            self.link,
            self.clock,
            consumer=consumer,
            lanes=self.lanes,
            left_behind=self.slots.get,
            alive=self.announced.__contains__,
            lease=LEASE,
            renew=RENEW,
        )

    def insert(self, count: int = 1) -> list[int]:
        with self.connection.cursor() as cursor:
            ids = [stored.id for stored in rows.insert(cursor, [Job("act")] * count)]
        self.broker.publish([Publication(self.reference(row_id), self.lanes[0]) for row_id in ids])
        return ids

    def enqueue_direct(self, count: int = 1) -> list[bytes]:
        references = [direct_reference(new_uuid(), "act", None).pack() for _ in range(count)]
        self.broker.publish([Publication(reference, self.lanes[1], payload=b"signed") for reference in references])
        return references

    def reference(self, row_id: int) -> bytes:
        return row_reference(self.database.tag, row_id, "act", None).pack()

    def claim(self, consumer: str, most: int = 10_000) -> list[Delivery]:
        return self.broker.claim(consumer, self.lanes, free=most)

    def die(self, *running: bytes, known: bool = True) -> None:
        """The supervisor that claimed is gone, and these ran in its children."""
        if known:
            self.slots[DEAD] = frozenset(running)

    def run_out(self, leases: float = 1.0) -> None:
        """Let time pass as it does: in small steps, in which we go on reclaiming."""
        for _ in range(int(leases * 15) + 1):
            self.clock.advance(LEASE / 15)
            self.step()

    def step(self) -> None:
        while self.reclaimer.step():
            pass

    def row(self, row_id: int) -> queries.SeenJob:
        with self.connection.cursor() as cursor:
            found = queries.job(cursor, row_id)
        assert found is not None
        return found[0]

    def history(self, row_id: int) -> list[tuple[str, str]]:
        with self.connection.cursor() as cursor:
            return [(entry.event.value, entry.supervisor) for entry in attempts.of_job(cursor, row_id)]

    def start_alone(self, row_id: int, supervisor: str = DEAD) -> None:
        """What a careful supervisor writes before it starts a job."""
        with self.connection.cursor() as cursor:
            attempts.record(cursor, row_id, supervisor, 0, "started", "alone")

    def claimable(self) -> list[int]:
        return [Reference.unpack(delivery.reference).id for delivery in self.claim("next")]

    def close(self) -> None:
        self.link.close()
        self.connection.close()
        self.broker.close()


@pytest.fixture
def bench(database: str, redis_server: RedisServer) -> Iterator[Bench]:
    made = Bench(database, redis_server)
    yield made
    made.close()


def charges(row: queries.SeenJob) -> tuple[int, int, int]:
    return row.attempts, row.crashes, row.suspects


def test_nothing_is_taken_before_its_lease_ran_out(bench: Bench) -> None:
    bench.insert(3)
    held = bench.claim(DEAD)
    for _ in range(40):
        bench.clock.advance(RENEW)
        assert bench.broker.renew(DEAD, bench.lanes, [delivery.lease for delivery in held]) == []
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
    assert charges(bench.row(row_id)) == (1, 1, 0)
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


def test_c7_a_job_that_kills_its_host_runs_at_most_three_times(bench: Bench) -> None:
    """The first death makes a suspect, the next ones, alone, charge it; in the end it is dead and settled."""
    [row_id] = bench.insert()
    for death in range(MAX_CRASHES):
        supervisor = f"host-{death}"
        assert [d.reference for d in bench.claim(supervisor)] == [bench.reference(row_id)], f"before death {death}"
        if death:
            bench.start_alone(row_id, supervisor)
        bench.run_out()
    row = bench.row(row_id)
    assert (row.state.value, row.crashes) == ("dead", MAX_CRASHES)
    assert row.error is not None
    assert "died while it ran there alone" in row.error
    assert bench.claimable() == []
    assert bench.broker.known(bench.database.tag, 0).strip(b"\0") == b"", "settled, not only dead"


def test_a_row_at_its_end_is_settled(bench: Bench) -> None:
    done, gone = bench.insert(2)
    bench.claim(DEAD)
    bench.connection.execute("UPDATE sidestream_job SET state = 'done' WHERE id = %s", (done,))
    bench.connection.execute("DELETE FROM sidestream_job WHERE id = %s", (gone,))
    bench.die(bench.reference(done), bench.reference(gone))
    bench.run_out()
    assert bench.claimable() == []
    assert bench.broker.known(bench.database.tag, 0).strip(b"\0") == b""
    assert charges(bench.row(done)) == (0, 0, 0)


def test_c8_sessions_of_the_dead_are_ended_before_their_jobs_come_back(bench: Bench) -> None:
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


def test_a_direct_job_is_charged_only_when_it_ran_there_alone(bench: Bench) -> None:
    first, second = bench.enqueue_direct(2)
    bench.claim(DEAD)
    bench.die(first, second)
    bench.run_out()
    assert [(d.attempts, d.crashes) for d in bench.claim(DEAD)] == [(0, 0), (0, 0)]
    bench.die(first)
    bench.run_out()
    assert {d.reference: d.crashes for d in bench.claim(DEAD)} == {first: 1, second: 0}


def test_a_direct_job_that_kills_its_host_is_buried_at_last(bench: Bench) -> None:
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


def test_a_charge_is_written_once_however_often_the_broker_has_to_be_told(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.start_alone(row_id)
    bench.die(bench.reference(row_id))
    release = bench.broker.release
    told = 0

    def refuse(*args: Any, **options: Any) -> int:
        nonlocal told
        told += 1
        if told <= 2:
            raise BrokerUnavailable("no answer")
        return release(*args, **options)

    bench.broker.release = refuse  # type: ignore[method-assign]
    refused = 0
    for _ in range(20):
        bench.clock.advance(1.0)
        try:
            bench.step()
        except BrokerUnavailable:
            refused += 1
    assert refused == 2
    assert charges(bench.row(row_id)) == (1, 1, 0)
    assert bench.claimable() == [row_id]


def test_a_second_reclaimer_that_takes_over_from_the_first_charges_nothing_more(bench: Bench) -> None:
    """The first died between PostgreSQL and Redis: crash point "reclaim.claimed", or just before the release."""
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.start_alone(row_id)
    bench.die(bench.reference(row_id))

    def die(*args: Any, **options: Any) -> int:
        raise BrokerUnavailable("we are dead")

    release, bench.broker.release = bench.broker.release, die  # type: ignore[method-assign]
    for _ in range(16):
        bench.clock.advance(1.0)
        try:
            bench.step()
        except BrokerUnavailable:
            break
    bench.broker.release = release  # type: ignore[method-assign]
    bench.slots[US] = frozenset()
    bench.reclaimer = bench.another("host-4-other")
    bench.run_out(leases=2)
    assert charges(bench.row(row_id)) == (1, 1, 0)
    assert bench.claimable() == [row_id]


def test_more_than_a_thousand_deliveries_come_back_in_one_round(bench: Bench) -> None:
    ids = bench.insert(1200)
    bench.claim(DEAD)
    bench.die()
    for _ in range(15):
        bench.clock.advance(1.0)
        bench.reclaimer.step()
    steps = 1
    while bench.reclaimer.step():
        steps += 1
    assert steps <= 2
    assert bench.claimable() == ids


def test_a_silence_of_the_broker_is_nobodys_fault(bench: Bench) -> None:
    """Redis was frozen: owners get one renew interval before anything is taken from them."""
    bench.insert()
    [delivery] = bench.claim("host-3-alive")
    bench.clock.advance(60)
    bench.step()
    bench.clock.advance(RENEW / 2)
    bench.step()
    assert bench.broker.renew("host-3-alive", bench.lanes, [delivery.lease]) == []
    bench.clock.advance(RENEW)
    bench.step()
    assert bench.claimable() == []


def test_a_worker_without_a_database_gives_rows_back(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.reclaimer = Reclaimer(
        bench.broker, None, bench.clock, consumer=US, lanes=bench.lanes, left_behind=bench.slots.get, lease=LEASE
    )
    bench.run_out()
    assert bench.claimable() == [row_id]


def test_what_we_took_over_is_charged_even_when_redis_is_emptied(bench: Bench, postgres: PostgresServer) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.start_alone(row_id)
    bench.die(known=False)
    postgres.kill()
    for _ in range(20):
        bench.clock.advance(1.0)
        with contextlib.suppress(StoreUnavailable):
            bench.reclaimer.step()
    bench.redis.flushall()
    other = bench.another_broker()
    other.begin_generation()
    postgres.start()
    bench.connection.close()
    bench.connection = bench.session("bench")
    bench.step()
    bench.step()
    assert charges(bench.row(row_id)) == (1, 1, 0)
    other.publish([Publication(bench.reference(row_id), bench.lanes[0])])
    assert [d.reference for d in other.claim("next", bench.lanes, free=1)] == [bench.reference(row_id)]
    bench.clock.advance(1.0)
    bench.step()
    lease = Lease(b"unknown", "next", 1)
    assert bench.broker.renew("next", bench.lanes, [lease]) == [lease], "it knows the new generation by itself"
    other.close()


def test_a_delivery_that_cannot_be_read_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = Delivery(b"\x01 truncated", bench.lanes[0], Lease(b"entry", US, 2), 0)
    pages = [Reclaimed("0-0", [(strange, DEAD)])]
    monkeypatch.setattr(bench.broker, "reclaim", lambda *args, **options: pages.pop())
    released: list[Delivery] = []
    monkeypatch.setattr(bench.broker, "release", lambda lanes, delivery, **options: released.append(delivery))
    bench.reclaimer.step()
    assert released == [strange]
