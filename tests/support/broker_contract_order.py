"""Test the broker contract: priorities with aging, weights of queues, and groups."""

from __future__ import annotations

from itertools import pairwise

from sidestream.broker.protocol import Capability
from sidestream.job.outcome import Release
from tests.support.broker_contract import Bench, claim, govern, ids, row, serve


class PriorityCases:
    """Priorities, aging and weights of queues."""

    needs = Capability.PRIORITIES

    def test_the_lower_number_goes_first(self, bench: Bench) -> None:
        bench.put([row(bench, 1, priority=9), row(bench, 2, priority=5), row(bench, 3, priority=0), row(bench, 4)])
        assert ids(claim(bench)) == [3, 2, 4, 1]

    def test_an_urgent_job_that_comes_later_overtakes(self, bench: Bench) -> None:
        bench.put([row(bench, number) for number in range(1, 5)])
        assert serve(bench, 1) == [1]
        bench.put([row(bench, 9, priority=0)])
        assert serve(bench, 4) == [9, 2, 3, 4]

    def test_aging_bounds_the_wait_under_a_continuous_urgent_stream(self, bench: Bench) -> None:
        govern(bench, aging=0.5)
        bench.put([row(bench, 1, priority=9)])
        aged_ms, turns, aged = bench.now() + 500, 0, False
        for number in range(10, 100):
            bench.put([row(bench, number, priority=0), row(bench, number + 100, priority=0)])
            aged = bench.now() > aged_ms
            if serve(bench, 1) == [1]:
                break
            turns += aged
            bench.advance(50)
        assert aged, "not before its time"
        assert turns <= 1, "it has every second turn from then on"

    def test_jobs_that_are_not_aged_wait(self, bench: Bench) -> None:
        govern(bench, aging=60.0)
        bench.put([row(bench, 1, priority=6)])
        bench.advance(20)
        bench.put([row(bench, number, priority=2) for number in range(10, 16)])
        assert serve(bench, 7) == [*range(10, 16), 1]

    def test_the_aged_never_take_more_than_every_second_turn(self, bench: Bench) -> None:
        govern(bench, aging=0.02)
        bench.put([row(bench, number, priority=9) for number in range(1, 21)])
        bench.put([row(bench, number, priority=0) for number in range(101, 121)])
        bench.advance(50)
        served = serve(bench, 20)
        urgent = [number > 100 for number in served]
        assert sum(urgent) == 10
        assert all(one is not other for one, other in pairwise(urgent)), "turn by turn"

    def test_aged_priorities_take_turns(self, bench: Bench) -> None:
        govern(bench, aging=0.02)
        bench.put([row(bench, number, priority=5) for number in range(1, 21)])
        bench.put([row(bench, 50, priority=9)])
        bench.put([row(bench, number, priority=0) for number in range(101, 121)])
        bench.advance(50)
        assert 50 in serve(bench, 5), "the backlog between does not keep the lowest one"

    def test_a_priority_is_kept_through_a_release(self, bench: Bench) -> None:
        bench.put([row(bench, 1, priority=7), row(bench, 2, priority=8)])
        (one,) = claim(bench, 1)
        assert one.priority == 7
        bench.broker.release(one, Release())
        (one,) = claim(bench, 1)
        assert (ids([one]), one.priority) == ([1], 7)
        bench.broker.release(one, Release(delay_ms=300))
        bench.advance(400)
        (one, _) = claim(bench)
        assert (ids([one]), one.priority) == ([1], 7)

    def test_the_head_of_a_key_goes_by_its_own_priority(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k", priority=9), row(bench, 2, "k", priority=0), row(bench, 3, priority=5)])
        assert serve(bench, 3) == [3, 1, 2]

    def test_a_waiting_job_is_given_another_priority(self, bench: Bench) -> None:
        jobs = [row(bench, 1, priority=8), row(bench, 2), row(bench, 3, "k"), row(bench, 4, "k")]
        later = row(bench, 5, due=bench.now() + 2000)
        bench.put([*jobs, later])
        assert bench.broker.reprioritize(jobs[0], 0)
        assert bench.broker.reprioritize(jobs[3], 1)
        assert bench.broker.reprioritize(later, 0)
        assert not bench.broker.reprioritize(row(bench, 6), 0), "nowhere"
        (first,) = claim(bench, 1)
        assert (ids([first]), first.priority) == ([1], 0)
        assert not bench.broker.reprioritize(jobs[0], 5), "handed off"
        bench.end([first])
        bench.advance(2100)
        assert serve(bench, 4) == [5, 2, 3, 4]
        bench.put([jobs[0]._replace(priority=6), jobs[1]])
        assert bench.broker.reprioritize(jobs[0]._replace(priority=6), 2)
        assert bench.broker.reprioritize(jobs[0]._replace(priority=6), 4), (
            "found although it is not where it was thought to be"
        )
        assert serve(bench, 2) == [1, 2]

    def test_queues_share_by_weight(self, bench: Bench) -> None:
        govern(bench, queue_weights={"heavy": 3.0})
        bench.put([row(bench, number, queue="heavy") for number in range(1, 41)])
        bench.put([row(bench, number, queue="light") for number in range(101, 141)])
        served = serve(bench, 40, queues=("heavy", "light"))
        assert sum(number < 100 for number in served) in (29, 30, 31)
        govern(bench, queue_weights={"light": 3.0})
        served = serve(bench, 12, queues=("heavy", "light"))
        assert sum(number > 100 for number in served) in (8, 9, 10), "a weight takes effect while it runs"

    def test_an_idle_queue_accumulates_no_turns(self, bench: Bench) -> None:
        queues = ("busy", "idle")
        bench.put([row(bench, number, queue="busy") for number in range(1, 31)])
        bench.put([row(bench, 100, queue="idle")])
        assert 100 in serve(bench, 20, queues=queues)
        bench.put([row(bench, number, queue="idle") for number in range(101, 111)])
        assert sum(number > 100 for number in serve(bench, 6, queues=queues)) in (3, 4)


class FairnessCases:
    """Groups, which take turns by weight."""

    needs = Capability.GROUPS

    def test_groups_take_turns(self, bench: Bench) -> None:
        bench.put([row(bench, number, group="A") for number in range(1, 11)])
        bench.put([row(bench, number, group="B") for number in range(101, 111)])
        bench.put([row(bench, number) for number in range(201, 211)])
        served = serve(bench, 12)
        assert sorted(served) == [*range(1, 5), *range(101, 105), *range(201, 205)]
        for at in range(0, 12, 3):
            assert len({number // 100 for number in served[at : at + 3]}) == 3

    def test_shares_go_by_weight(self, bench: Bench) -> None:
        govern(bench, group_weights={"A": 3.0})
        bench.put([row(bench, number, group="A") for number in range(1, 61)])
        bench.put([row(bench, number, group="B") for number in range(101, 161)])
        assert sum(number < 100 for number in serve(bench, 40)) in (29, 30, 31)
        govern(bench, group_weights={"A": 0.5})
        assert sum(number < 100 for number in serve(bench, 30)) in (9, 10, 11), "edited while it runs"

    def test_a_late_groups_first_job_is_next(self, bench: Bench) -> None:
        bench.put([row(bench, number, group="A") for number in range(1, 101)])
        serve(bench, 40)
        bench.put([row(bench, 500, group="late")])
        assert 500 in serve(bench, 2), "it waits for one job of the other group at most"

    def test_an_idle_group_accumulates_no_turns(self, bench: Bench) -> None:
        bench.put([row(bench, number, group="A") for number in range(1, 61)])
        bench.put([row(bench, 200, group="B")])
        serve(bench, 30)
        bench.put([row(bench, number, group="B") for number in range(201, 221)])
        assert sum(number > 200 for number in serve(bench, 10)) in (4, 5, 6)

    def test_within_a_group_the_oldest_goes_first(self, bench: Bench) -> None:
        bench.put([row(bench, 9, group="A"), row(bench, 7, group="A")])
        bench.advance(5)
        bench.put([row(bench, 3, group="A")])
        assert serve(bench, 3) == [7, 9, 3]

    def test_priority_precedes_groups(self, bench: Bench) -> None:
        bench.put([row(bench, number, group="A") for number in range(1, 4)])
        bench.put([row(bench, number, group="B", priority=0) for number in range(11, 14)])
        assert serve(bench, 6) == [11, 12, 13, 1, 2, 3]

    def test_one_claim_is_shared_between_groups_too(self, bench: Bench) -> None:
        bench.put([row(bench, number, group="A") for number in range(1, 101)])
        bench.put([row(bench, number, group="B") for number in range(201, 211)])
        assert sum(number > 200 for number in ids(claim(bench, 10))) == 5

    def test_many_groups_of_one_job_each(self, bench: Bench) -> None:
        bench.put([row(bench, number, group=f"company {number}") for number in range(1, 501)])
        served = ids(claim(bench, 300)) + ids(claim(bench, 300))
        assert sorted(served) == list(range(1, 501))
