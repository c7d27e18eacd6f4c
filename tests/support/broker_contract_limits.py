"""Test the broker contract: limits of concurrency and rate."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from sidestream.broker.protocol import Capability, Delivery, Place, lane
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference
from sidestream.job.rules import Limit, Pause, Scope
from tests.support.broker_contract import LEASE_MS, Bench, claim, govern, ids, lanes_of, row
from tests.support.broker_contract_leases import keep_alive, reclaim

NAMED = {
    Scope.GLOBAL: (Scope.GLOBAL, ""),
    Scope.QUEUE: (Scope.QUEUE, "default"),
    Scope.ACTION: (Scope.ACTION, "act"),
    Scope.KEY: (Scope.KEY, "courier"),
}


def limited(bench: Bench, scope: Scope = Scope.KEY, *, synced: bool = True, **limit: float | None) -> None:
    """Put one limit in force in a database that is synced."""
    govern(bench, limits={NAMED[scope]: Limit(**limit)})  # type: ignore[arg-type]  # whole numbers where they must be
    if synced:
        bench.broker.mark_synced(bench.database)


def put(bench: Bench, count: int, start: int = 1) -> None:
    """Publish jobs that count against every scope of limits."""
    bench.put([row(bench, number, limit="courier:7") for number in range(start, start + count)])


class ConcurrencyCases:
    """Limits of concurrency."""

    needs = Capability.LIMITS

    @pytest.mark.parametrize("scope", list(Scope))
    def test_a_concurrency_limit_is_never_exceeded(self, bench: Bench, scope: Scope) -> None:
        limited(bench, scope, concurrency=3)
        put(bench, 20)
        held: list[Delivery] = []
        done: list[int] = []
        for step in range(60):
            held += claim(bench, 1 + step % 4, worker=f"w{step % 3}")
            assert len(held) <= 3
            if held and step % 2:
                bench.end([held[0]])
                done += ids([held.pop(0)])
            bench.advance(20)
        assert len(done) + len(held) == 20, "every slot was used again"
        assert done == sorted(done), "in their order"

    @pytest.mark.parametrize("scope", list(Scope))
    def test_a_limit_of_0_admits_nothing_and_no_limit_admits_everything(self, bench: Bench, scope: Scope) -> None:
        limited(bench, scope, concurrency=0)
        put(bench, 5)
        for _ in range(3):
            assert claim(bench) == []
            bench.advance(1100)
        limited(bench, scope)
        assert ids(claim(bench)) == [1, 2, 3, 4, 5]

    def test_each_value_of_a_key_has_its_own_count(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        bench.put([row(bench, number, limit=f"courier:{number % 3}") for number in range(1, 10)])
        bench.put([row(bench, 20), row(bench, 21, limit="other:1")])
        assert sorted(ids(claim(bench, 20))) == [1, 2, 3, 20, 21]

    def test_a_full_key_does_not_stop_the_others(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, 50)
        bench.put([row(bench, 99)])
        assert sorted(ids(claim(bench))) == [1, 99]

    @pytest.mark.parametrize("how", ["settle", "release", "fail", "reclaim"])
    def test_a_slot_is_freed_wherever_a_lease_ends(self, bench: Bench, how: str) -> None:
        limited(bench, concurrency=1)
        put(bench, 2)
        (held,) = claim(bench)
        assert claim(bench) == []
        if how == "settle":
            bench.end([held])
        elif how == "release":
            bench.broker.release(held, Release(delay_ms=60_000))
        elif how == "fail":
            assert bench.broker.fail(held, "no")
        else:
            keep_alive(bench, LEASE_MS + 100)
            ((taken, _),) = reclaim(bench).deliveries
            assert claim(bench) == [], "whoever took it over holds its slot"
            bench.broker.release(taken, Release(delay_ms=60_000))
        assert ids(claim(bench)) == [2]

    def test_a_slot_of_every_limit_or_of_none(self, bench: Bench) -> None:
        limits = {NAMED[Scope.ACTION]: Limit(2), NAMED[Scope.KEY]: Limit(1)}
        govern(bench, limits=limits)
        bench.broker.mark_synced(bench.database)
        put(bench, 2)
        bench.put([row(bench, 9)])
        assert sorted(ids(claim(bench))) == [1, 9], "2 took no slot of the action while its key was full"

    def test_a_cancelled_waiter_does_not_block_others(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, 3)
        (held,) = claim(bench)
        second = row(bench, 2, limit="courier:7")
        assert bench.broker.locate([second]) == [Place.LIMITED]
        assert bench.broker.discard(second)
        bench.end([held])
        assert ids(claim(bench)) == [3]

    def test_a_waiter_that_is_cancelled_when_it_was_woken_passes_the_slot_on(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, 3)
        (held,) = claim(bench)
        bench.end([held])
        assert bench.broker.discard(row(bench, 2, limit="courier:7"))
        bench.advance(1100)
        assert ids(claim(bench)) == [3]

    def test_a_woken_waiter_whose_queue_is_paused_lets_the_next_go_on(self, bench: Bench) -> None:
        other = lane(bench.database, "other")
        limit = {NAMED[Scope.KEY]: Limit(1)}
        govern(bench, limits=limit)
        bench.broker.mark_synced(bench.database)
        put(bench, 1)
        bench.advance(5)
        bench.put([row(bench, 2, limit="courier:7", queue="other")])
        bench.advance(5)
        put(bench, 1, start=3)
        both = [*lanes_of(bench), other]
        (held,) = bench.broker.claim("w1", both, free=9)
        assert bench.broker.claim("w1", both, free=9) == []
        govern(bench, limits=limit, pauses=frozenset({Pause(queue="other")}))
        bench.end([held])
        bench.advance(1100)
        found = bench.broker.claim("w1", both, free=9)
        assert ids(found) == [3], "2 was woken into a paused queue"
        govern(bench, limits=limit)
        bench.end(found)
        assert ids(bench.broker.claim("w1", both, free=9)) == [2]

    def test_a_raised_limit_wakes(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, 10)
        assert ids(claim(bench)) == [1]
        assert claim(bench) == []
        limited(bench, concurrency=4)
        assert ids(claim(bench)) == [2, 3, 4]

    def test_a_limit_lowered_below_its_holders_admits_nothing_until_enough_ended(self, bench: Bench) -> None:
        limited(bench, concurrency=4)
        put(bench, 10)
        held = claim(bench)
        assert ids(held) == [1, 2, 3, 4]
        limited(bench, concurrency=2)
        for _ in range(2):
            assert claim(bench) == []
            bench.end([held.pop()])
        assert claim(bench) == [], "two of two slots are taken"
        bench.end([held.pop()])
        assert ids(claim(bench)) == [5]

    def test_a_new_limit_counts_running_jobs(self, bench: Bench) -> None:
        put(bench, 5)
        held = claim(bench, 2)
        limited(bench, concurrency=2)
        assert claim(bench) == []
        bench.end([held[0]])
        assert ids(claim(bench)) == [3]

    def test_jobs_of_an_ordering_key_keep_their_order_under_a_limit(self, bench: Bench) -> None:
        limited(bench, Scope.ACTION, concurrency=2)
        bench.put([row(bench, number, f"k{number % 3}") for number in range(1, 31)])
        done: list[int] = []
        held: list[Delivery] = []
        for _ in range(80):
            held += claim(bench, 3)
            assert len(held) <= 2
            if held:
                done += ids([held[0]])
                bench.end([held.pop(0)])
        assert sorted(done) == list(range(1, 31))
        for key in range(3):
            mine = [number for number in done if number % 3 == key]
            assert mine == sorted(mine)

    def test_waiting_is_explained(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, 2)
        (held,) = claim(bench)
        told = bench.broker.explain(row(bench, 2, limit="courier:7"))
        assert (told.place, told.scope, told.holders) == (Place.LIMITED, "key", (held.reference,))
        limited(bench, Scope.QUEUE, concurrency=1)
        assert claim(bench) == []
        bench.put([row(bench, 3)])
        told = bench.broker.explain(row(bench, 3))
        assert (told.place, told.scope, told.holders) == (Place.LIMITED, "queue", (held.reference,))

    @pytest.mark.timeout(300)
    def test_very_many_waiters_on_one_key_are_cheap(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, bench.many)
        held = claim(bench)
        for _ in range(bench.many // 100):
            assert claim(bench) == [], "at most 100 are moved aside a call"
        assert bench.broker.locate([row(bench, bench.many, limit="courier:7")]) == [Place.LIMITED]
        took = []
        for expected in range(2, 40):
            began = time.perf_counter()
            bench.end(held)
            held = claim(bench)
            took.append(time.perf_counter() - began)
            assert ids(held) == [expected]
        assert sorted(took)[-4] < 0.5, "the machine may stand still a few times"


class RateCases:
    """Limits of rate."""

    needs = Capability.LIMITS

    @pytest.mark.parametrize("scope", list(Scope))
    def test_a_burst_and_then_the_rate(self, bench: Bench, scope: Scope) -> None:
        limited(bench, scope, rate=2.0, burst=3)
        put(bench, 20)
        assert ids(self.end_all(bench, claim(bench))) == [1, 2, 3]
        assert claim(bench) == []
        bench.advance(510)
        assert ids(self.end_all(bench, claim(bench))) == [4]
        assert claim(bench) == []
        bench.advance(60_000)
        assert ids(claim(bench)) == [5, 6, 7], "a quiet time saves up a burst and no more"

    def test_a_rate_of_0_admits_nothing(self, bench: Bench) -> None:
        limited(bench, rate=0.0)
        put(bench, 2)
        assert claim(bench) == []
        bench.advance(100_000)
        assert claim(bench) == []
        limited(bench)
        assert ids(claim(bench)) == [1, 2]

    def test_the_time_of_the_next_token_is_reported(self, bench: Bench) -> None:
        limited(bench, rate=1.0)
        put(bench, 2)
        assert len(claim(bench)) == 1
        assert claim(bench) == []
        told = bench.broker.explain(row(bench, 2, limit="courier:7"))
        assert (told.place, told.scope) == (Place.LIMITED, "key")
        assert bench.now() < told.until_ms <= bench.now() + 1001

    def test_a_raised_rate_takes_effect_at_once(self, bench: Bench) -> None:
        limited(bench, rate=0.001)
        put(bench, 2)
        assert len(claim(bench)) == 1
        assert claim(bench) == []
        limited(bench, rate=100.0)
        bench.advance(20)
        assert ids(claim(bench)) == [2]

    def test_a_rate_over_time(self, bench: Bench) -> None:
        limited(bench, Scope.ACTION, rate=10.0, burst=1)
        put(bench, 100)
        started = 0
        for _ in range(100):
            started += len(self.end_all(bench, claim(bench)))
            bench.advance(50)
        assert 48 <= started <= 51, "5 seconds at 10 a second"

    def end_all(self, bench: Bench, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Settle the jobs and return their deliveries."""
        bench.end(deliveries)
        return deliveries


class LimitLossCases:
    """Limits after the contents are lost."""

    needs = Capability.LIMITS

    def test_a_lost_holder_still_counts_until_its_lease_ends(self, bench: Bench) -> None:
        limited(bench, concurrency=1)
        put(bench, 2)
        claim(bench)
        keep_alive(bench, LEASE_MS - 1000)
        assert claim(bench) == [], "its worker may still run it"
        keep_alive(bench, 1100)
        ((taken, _),) = reclaim(bench).deliveries
        bench.end([taken])
        assert ids(claim(bench)) == [2]

    def test_no_limited_job_is_claimed_before_the_database_is_synced(self, bench: Bench) -> None:
        limited(bench, concurrency=1, synced=False)
        put(bench, 2)
        bench.put([row(bench, 9)])
        assert ids(claim(bench)) == [9], "no limit concerns 9"
        assert claim(bench) == []
        bench.broker.mark_synced(bench.database)
        assert ids(claim(bench)) == [1]

    def test_reasserting_takes_the_slots_again(self, bench: Bench) -> None:
        limited(bench, concurrency=2)
        put(bench, 4)
        held = claim(bench)
        assert ids(held) == [1, 2]
        rules = govern(bench, limits={NAMED[Scope.KEY]: Limit(2)})
        bench.wipe()  # type: ignore[attr-defined]  # only benches that can
        bench.broker.begin_generation()
        bench.broker.configure(bench.database, rules)
        put(bench, 4)
        assert claim(bench) == [], "supervisors are still stating what they hold"
        ours = bench.broker.reassert("w1", held)
        bench.broker.mark_synced(bench.database)
        assert claim(bench) == []
        bench.end([ours[0]])
        assert ids(claim(bench)) == [3]
        assert sorted(Reference.unpack(one.reference).id for one in ours) == [1, 2]

    def test_holders_stated_before_the_rules_count_too(self, bench: Bench) -> None:
        rules = govern(bench, limits={NAMED[Scope.KEY]: Limit(1)})
        bench.broker.mark_synced(bench.database)
        put(bench, 2)
        held = claim(bench)
        bench.wipe()  # type: ignore[attr-defined]  # only benches that can
        bench.broker.begin_generation()
        ours = bench.broker.reassert("w1", held)
        put(bench, 2)
        bench.broker.configure(bench.database, rules)
        bench.broker.mark_synced(bench.database)
        assert claim(bench) == []
        bench.end(ours)
        assert ids(claim(bench)) == [2]
