"""Test the broker contract: rows whose time or priority changes while they wait."""

from __future__ import annotations

from sidestream.broker.protocol import Place
from sidestream.job.outcome import Release
from tests.support.broker_contract import Bench, claim, ids, lanes_of, row, running
from tests.support.broker_contract_waiting import wait_until_blocked


class EditedCases:
    """Published rows that are published again as edited, for brokers that store references."""

    def test_an_earlier_time_counts_at_once(self, bench: Bench) -> None:
        bench.put([row(bench, 1, due=bench.now() + 60_000)])
        assert claim(bench) == []
        assert bench.broker.publish([row(bench, 1)]) == 0, "it is known"
        assert claim(bench) == []
        assert bench.broker.publish([row(bench, 1)._replace(edited=True)]) == 1
        (one,) = claim(bench)
        assert ids([one]) == [1]
        bench.end([one])
        bench.advance(70_000)
        assert claim(bench) == [], "it was in one place only"

    def test_its_releases_stay_counted(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        assert bench.broker.release(one, Release(delay_ms=3_600_000)) == 1
        assert bench.broker.delayed_until([row(bench, 1)]) == [bench.broker.explain(row(bench, 1)).until_ms]
        assert bench.broker.publish([row(bench, 1)._replace(edited=True)]) == 1
        assert bench.broker.delayed_until([row(bench, 1)]) == [0]
        (one,) = claim(bench)
        assert bench.broker.release(one, Release()) == 2

    def test_a_later_time_counts_at_once(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        later = row(bench, 1, due=bench.now() + 60_000)._replace(edited=True)
        assert bench.broker.publish([later]) == 1
        assert claim(bench) == []
        assert bench.broker.locate([later]) == [Place.DELAYED]
        bench.advance(60_100)
        assert ids(claim(bench)) == [1]

    def test_another_priority_counts_at_once(self, bench: Bench) -> None:
        bench.put([row(bench, number) for number in (1, 2, 3)])
        bench.broker.publish([row(bench, 3)._replace(edited=True, priority=0)])
        assert ids(claim(bench, 2)) == [3, 1]

    def test_a_running_job_is_not_changed(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        assert bench.broker.publish([row(bench, 1)._replace(edited=True)]) == 0
        assert claim(bench) == []
        bench.end([one])

    def test_an_unpublished_job_is_published(self, bench: Bench) -> None:
        assert bench.broker.publish([row(bench, 1)._replace(edited=True)]) == 1
        assert ids(claim(bench)) == [1]

    def test_a_postponed_head_lets_the_next_go_first(self, bench: Bench) -> None:
        bench.put([row(bench, number, "k") for number in (1, 2)])
        bench.broker.publish([row(bench, 1, "k", due=bench.now() + 5_000)._replace(edited=True)])
        (second,) = claim(bench)
        assert ids([second]) == [2]
        bench.advance(6_000)
        assert claim(bench) == [], "the other one of its key runs"
        bench.end([second])
        assert ids(claim(bench)) == [1]

    def test_a_head_that_was_postponed_while_it_was_leased_lets_the_next_go_first(self, bench: Bench) -> None:
        bench.put([row(bench, number, "k") for number in (1, 2, 3)])
        (first,) = claim(bench)
        later = row(bench, 1, "k", due=bench.now() + 5_000)._replace(edited=True)
        assert bench.broker.publish([later]) == 0, "its worker looks at the row"
        assert bench.broker.release(first, Release(delay_ms=5_000, unstarted=True)) == 1
        assert bench.broker.locate([later]) == [Place.DELAYED]
        (second,) = claim(bench)
        assert ids([second]) == [2]
        bench.end([second])
        bench.advance(5_100)
        for expected in (1, 3):
            (one,) = claim(bench)
            assert ids([one]) == [expected]
            bench.end([one])

    def test_postponing_a_head_wakes_a_reader_for_the_next(self, bench: Bench) -> None:
        bench.put([row(bench, number, "k") for number in (1, 2)])
        (first,) = claim(bench)
        second, got = bench.second(), []
        with running(lambda: got.extend(second.claim("w2", lanes_of(bench), free=1, wait_ms=10_000))):
            wait_until_blocked(bench)
            bench.broker.release(first, Release(delay_ms=60_000, unstarted=True))
        assert ids(got) == [2]

    def test_a_keyed_job_takes_its_place_by_id_again(self, bench: Bench) -> None:
        bench.put([row(bench, number, "k") for number in (1, 2, 3)])
        bench.broker.publish([row(bench, 2, "k")._replace(edited=True, priority=0)])
        for expected in (1, 2, 3):
            (one,) = claim(bench)
            assert ids([one]) == [expected]
            bench.end([one])

    def test_a_withdrawn_head_frees_its_key(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k", due=bench.now() + 60_000, attempted=True), row(bench, 2, "k")])
        assert claim(bench) == []
        gone = row(bench, 1, "k")._replace(withdrawn=True)
        assert bench.broker.publish([gone]) == 0
        assert bench.broker.locate([gone]) == [Place.NOWHERE]
        (second,) = claim(bench)
        assert ids([second]) == [2]
        bench.end([second])
        assert bench.broker.publish([row(bench, 1, "k")]) == 1, "a person acquired it again"
        assert ids(claim(bench)) == [1]

    def test_withdrawing_a_head_wakes_a_reader_for_the_next(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k", due=bench.now() + 60_000, attempted=True), row(bench, 2, "k")])
        second, got = bench.second(), []
        with running(lambda: got.extend(second.claim("w2", lanes_of(bench), free=1, wait_ms=10_000))):
            wait_until_blocked(bench)
            bench.broker.publish([row(bench, 1, "k")._replace(withdrawn=True)])
        assert ids(got) == [2]

    def test_a_withdrawn_job_that_runs_is_not_changed(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k"), row(bench, 2, "k")])
        (one,) = claim(bench)
        bench.broker.publish([row(bench, 1, "k")._replace(withdrawn=True)])
        assert claim(bench) == []
        bench.end([one])
        assert ids(claim(bench)) == [2]

    def test_published_and_withdrawn_in_one_call(self, bench: Bench) -> None:
        gone = [row(bench, number)._replace(withdrawn=True) for number in (1, 2, 3)]
        bench.put([row(bench, 1)])
        assert bench.broker.publish([row(bench, 2), *gone, row(bench, 1), row(bench, 4)]) == 3, "2, 1 again, and 4"
        assert sorted(ids(claim(bench))) == [1, 4]
        assert bench.broker.publish([row(bench, number) for number in (1, 2, 3, 4)]) == 2, "2 and 3 are not known"

    def test_many_in_one_call(self, bench: Bench) -> None:
        bench.put([row(bench, number, due=bench.now() + 60_000) for number in range(1, 9)])
        jobs = [row(bench, number)._replace(edited=number % 2 == 0) for number in range(1, 11)]
        assert bench.broker.publish(jobs) == 6, "4 that were edited, 2 that were not known"
        assert sorted(ids(claim(bench, 20))) == [2, 4, 6, 8, 9, 10]

    def test_the_last_of_several_counts(self, bench: Bench) -> None:
        bench.put([row(bench, 1, due=bench.now() + 60_000)])
        soon, later = row(bench, 1, due=bench.now() + 1000), row(bench, 1, due=bench.now() + 5000)
        edits = [row(bench, 1), soon._replace(priority=9), later._replace(priority=2), soon._replace(priority=0)]
        bench.broker.publish([one._replace(edited=True) for one in edits])
        assert claim(bench) == []
        bench.advance(1100)
        (one,) = claim(bench)
        assert (ids([one]), one.priority) == ([1], 0)
        bench.end([one])
        bench.advance(5000)
        assert claim(bench) == []
