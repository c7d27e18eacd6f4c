"""The reclaimer while servers are away, other reclaimers compete, and much is lost at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from sidestream.broker.failover import PROBE_EVERY, FailoverBroker
from sidestream.broker.protocol import Delivery, Lease, Publication, Reclaimed
from sidestream.errors import BrokerUnavailable, StoreUnavailable
from sidestream.job.rules import Rules
from sidestream.maintenance.lease_reclaimer import LeaseReclaimer
from sidestream.wiring.worker import DeadWorkersTask
from sidestream.worker.run_dir import DeadWorkers, RunFolder
from sidestream.worker.slots import Slots
from tests.integration.reclaimer.conftest import DEAD, LEASE, RENEW, US, Bench, charges
from tests.support.servers import PostgresServer


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
    assert charges(bench.row(row_id)) == (1, 1, -1)
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
    assert charges(bench.row(row_id)) == (1, 1, -1)
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
    """Redis was frozen, or set back to an older file: its owner may see last that it is there again, and renew."""
    bench.insert()
    owner = FailoverBroker(bench.another_broker(), None, bench.clock, longest_pause=RENEW)
    owner.generation()
    [delivery] = owner.claim("host-3-alive", bench.lanes, free=10)
    bench.clock.advance(60)
    bench.step()
    for _ in range(round((RENEW + PROBE_EVERY) / 0.1)):  # the longest pause of its probe, and its own rhythm
        bench.clock.advance(0.1)
        bench.step()
    assert owner.renew("host-3-alive", [delivery.lease]) == []
    bench.clock.advance(RENEW)
    bench.step()
    assert bench.claimable() == []
    owner.close()


@pytest.mark.parametrize("away", ["redis", "postgres"])
def test_who_ran_is_still_known_after_an_outage(
    bench: Bench, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """A worker dies while a server is away for longer than its slots are kept otherwise (D6)."""
    ran, *bystanders = bench.insert(20)
    bench.claim(DEAD)
    RunFolder(tmp_path, DEAD).remove(leases_left=True)
    slots, descriptor = Slots.create(tmp_path / "run" / DEAD / "slots", 2)
    slots.start(1, 0, 1.0, bench.reference(ran))
    left = DeadWorkers(tmp_path, monotonic=bench.clock.monotonic)
    bench.reclaimer = LeaseReclaimer(
        bench.broker, bench.store, bench.clock, worker=US, lanes=bench.lanes, dead_workers=left.running, lease=LEASE
    )
    task = DeadWorkersTask(left, bench.reclaimer, 2 * LEASE + RENEW)

    def pass_time(seconds: int) -> None:
        for _ in range(seconds):
            bench.clock.advance(1.0)
            with contextlib.suppress(BrokerUnavailable, StoreUnavailable):
                bench.step()
            task.step()

    def refuse(*_: Any, **__: Any) -> Reclaimed:
        raise BrokerUnavailable("away")

    pass_time(2)
    with monkeypatch.context() as patch:
        if away == "redis":
            patch.setattr(bench.broker, "reclaim", refuse)
        else:
            postgres.kill()
        pass_time(80)
    if away == "postgres":
        postgres.start()
        bench.connection.close()
        bench.connection = bench.session("bench")
    pass_time(30)
    assert charges(bench.row(ran)) == (0, 0, 1)
    assert {charges(bench.row(row_id)) for row_id in bystanders} == {(0, 0, 0)}
    assert sorted(bench.claimable()) == [ran, *bystanders]
    assert (tmp_path / "run" / DEAD).exists()
    pass_time(40)
    assert not (tmp_path / "run" / DEAD).exists(), "all was taken over long ago"
    slots.close()
    os.close(descriptor)


def test_a_worker_without_a_database_gives_rows_back(bench: Bench) -> None:
    [row_id] = bench.insert()
    bench.claim(DEAD)
    bench.reclaimer = LeaseReclaimer(
        bench.broker, None, bench.clock, worker=US, lanes=bench.lanes, dead_workers=bench.slots.get, lease=LEASE
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
    other.configure(bench.database.tag, Rules())
    postgres.start()
    bench.connection.close()
    bench.connection = bench.session("bench")
    bench.step()
    bench.step()
    assert charges(bench.row(row_id)) == (1, 1, -1)
    other.publish([Publication(bench.reference(row_id), bench.lanes[0])])
    assert [d.reference for d in other.claim("next", bench.lanes, free=1)] == [bench.reference(row_id)]
    bench.clock.advance(1.0)
    bench.step()
    lease = Lease(b"unknown", "next", 1)
    assert bench.broker.renew("next", [lease]) == [lease], "it knows the new generation by itself"
    other.close()


def test_a_delivery_that_cannot_be_read_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine = Delivery(b"\x01 truncated", bench.lanes[0], Lease(b"entry", US, 2), 0)
    pages = [Reclaimed([(quarantine, DEAD)], more=False)]
    monkeypatch.setattr(bench.broker, "reclaim", lambda *args, **options: pages.pop())
    released: list[Delivery] = []
    monkeypatch.setattr(bench.broker, "release", lambda delivery, release: released.append(delivery))
    bench.reclaimer.step()
    assert released == [quarantine]
