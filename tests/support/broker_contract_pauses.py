"""Test the broker contract: pauses, rules in new generations, and unrouted jobs."""

from __future__ import annotations

from typing import Any

from sidestream.broker.protocol import Capability, Place, lane
from sidestream.job.names import tag
from sidestream.job.outcome import Release
from sidestream.job.rules import Pause, Rules
from tests.support.broker_contract import Bench, claim, govern, ids, lanes_of, row, serve

ACT, BILL = tag("act", 4), tag("bill", 4)


def pause(**what: str) -> dict[str, Any]:
    """Return rules with one pause."""
    return {"pauses": frozenset({Pause(**what)})}


class PauseCases:
    """Paused jobs, which are not claimed until they are resumed."""

    needs = Capability.PAUSES

    def test_a_paused_queue(self, bench: Bench) -> None:
        both = [*lanes_of(bench), lane(bench.database, "other")]
        job = row(bench, 1)
        bench.put([job, row(bench, 2, queue="other")])
        govern(bench, **pause(queue="default"))
        assert ids(bench.broker.claim("w1", both, free=9)) == [2]
        told = bench.broker.explain(job)
        assert (told.place, told.scope) == (Place.PAUSED, "queue")
        govern(bench)
        assert ids(claim(bench)) == [1]

    def test_a_paused_action(self, bench: Bench) -> None:
        job = row(bench, 1, action="bill")
        bench.put([job, row(bench, 2)])
        govern(bench, **pause(action="bill"))
        assert ids(claim(bench)) == [2]
        told = bench.broker.explain(job)
        assert (told.place, told.scope) == (Place.PAUSED, "action")
        govern(bench)
        assert ids(claim(bench)) == [1]

    def test_a_paused_group(self, bench: Bench) -> None:
        job = row(bench, 1, group="A")
        bench.put([job, row(bench, 2, group="B"), row(bench, 3)])
        govern(bench, **pause(group="A"))
        assert sorted(ids(claim(bench))) == [2, 3]
        bench.put([row(bench, 4, group="A"), row(bench, 5, group="A", priority=0)])
        assert claim(bench) == []
        told = bench.broker.explain(job)
        assert (told.place, told.scope) == (Place.PAUSED, "group")
        govern(bench)
        assert ids(claim(bench)) == [5, 1, 4]

    def test_a_paused_action_of_a_group(self, bench: Bench) -> None:
        job = row(bench, 1, group="A", action="bill")
        bench.put([job, row(bench, 2, group="A"), row(bench, 3, group="B", action="bill")])
        govern(bench, **pause(action="bill", group="A"))
        assert sorted(ids(claim(bench))) == [2, 3]
        told = bench.broker.explain(job)
        assert (told.place, told.scope) == (Place.PAUSED, "action of group")
        govern(bench)
        assert ids(claim(bench)) == [1]

    def test_a_resumed_job_has_its_old_place(self, bench: Bench) -> None:
        bench.put([row(bench, 1, action="bill")])
        bench.advance(10)
        bench.put([row(bench, 2), row(bench, 3)])
        govern(bench, **pause(action="bill"))
        assert ids(claim(bench, 1)) == [2]
        govern(bench)
        assert ids(claim(bench)) == [1, 3]

    def test_resuming_returns_all_jobs_in_batches(self, bench: Bench) -> None:
        bench.put([row(bench, number, action="bill") for number in range(1, 351)])
        govern(bench, **pause(action="bill"))
        for _ in range(5):
            assert claim(bench) == []
        govern(bench)
        found = []
        for _ in range(8):
            page = ids(claim(bench, 1000))
            assert len(page) <= 200, "bounded a call"
            found += page
        assert sorted(found) == list(range(1, 351))

    def test_a_job_released_during_a_pause_stays_paused(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (held,) = claim(bench)
        govern(bench, **pause(queue="default"))
        assert bench.broker.release(held, Release()) == 1
        assert claim(bench) == []
        govern(bench)
        assert ids(claim(bench)) == [1]

    def test_running_jobs_continue_during_a_pause(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        held = claim(bench)
        govern(bench, **pause(action="act"))
        assert bench.broker.renew("w1", [one.lease for one in held]) == []
        bench.end(held)

    def test_a_paused_head_blocks_its_key_alone(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k", action="bill"), row(bench, 2, "k"), row(bench, 3, "other")])
        govern(bench, **pause(action="bill"))
        assert serve(bench, 3) == [3]
        govern(bench)
        assert serve(bench, 3) == [1, 2]

    def test_one_process_pauses_and_another_resumes(self, bench: Bench) -> None:
        bench.put([row(bench, 1, group="A"), row(bench, 2, action="bill")])
        second = bench.second()
        govern(bench, pauses=frozenset({Pause(group="A"), Pause(action="bill")}))
        assert second.claim("w2", lanes_of(bench), free=9) == []
        govern(bench, second)
        assert sorted(ids(claim(bench))) == [1, 2]

    def test_older_rules_do_not_come_back(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        old = govern(bench)
        govern(bench, **pause(queue="default"))
        assert bench.broker.configure(bench.database, old) is False, "a host that was cut off brings its old ones"
        assert claim(bench) == []


class RulesCases:
    """Rules in a new generation."""

    needs = Capability.PAUSES

    def test_nothing_of_a_database_is_claimed_before_its_rules(self, empty_bench: Bench) -> None:
        bench = empty_bench
        bench.broker.begin_generation()
        bench.put([row(bench, 1)])
        assert claim(bench) == []
        assert bench.broker.configure(bench.database, Rules())
        assert ids(claim(bench)) == [1]

    def test_a_pause_survives_a_new_generation(self, bench: Bench) -> None:
        rules = govern(bench, **pause(action="bill"))
        bench.put([row(bench, 1, action="bill")])
        assert claim(bench) == []
        bench.wipe()  # type: ignore[attr-defined]  # only benches that can
        bench.broker.begin_generation()
        bench.put([row(bench, 1, action="bill"), row(bench, 2)])
        assert claim(bench) == [], "the rules are not known again yet"
        assert bench.broker.configure(bench.database, rules)
        assert ids(claim(bench)) == [2]

    def test_rules_of_another_database_do_not_matter(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        bench.broker.configure(b"otherone", Rules(7, pauses=frozenset({Pause(queue="default")})))
        assert ids(claim(bench)) == [1]


class UnknownCases:
    """Jobs whose action the claiming worker does not know."""

    needs = Capability.ROUTING

    def test_an_unknown_action_is_unrouted_until_a_worker_knows_it(self, bench: Bench) -> None:
        job = row(bench, 1, action="bill")
        bench.put([job, row(bench, 2)])
        bench.broker.announce("old", lanes_of(bench), "{}", 15_000, frozenset({ACT}))
        assert ids(claim(bench, worker="old")) == [2]
        assert bench.broker.explain(job).place is Place.UNROUTED
        assert bench.broker.locate([job]) == [Place.UNROUTED]
        bench.broker.announce("new", lanes_of(bench), "{}", 15_000, frozenset({ACT, BILL}))
        assert ids(claim(bench, worker="new")) == [1]

    def test_a_worker_without_a_list_takes_any(self, bench: Bench) -> None:
        bench.put([row(bench, 1, action="bill")])
        bench.broker.announce("old", lanes_of(bench), "{}", 15_000, frozenset({ACT}))
        assert claim(bench, worker="old") == []
        bench.broker.announce("any", lanes_of(bench), "{}", 15_000)
        assert ids(claim(bench, worker="any")) == [1]

    def test_two_releases_do_not_pass_a_job_back_and_forth(self, bench: Bench) -> None:
        bench.put([row(bench, number, action="bill") for number in range(1, 4)])
        bench.put([row(bench, number) for number in range(11, 14)])
        bench.broker.announce("old", lanes_of(bench), "{}", 15_000, frozenset({ACT}))
        bench.broker.announce("new", lanes_of(bench), "{}", 15_000, frozenset({BILL}))
        for expected in ((1, 11), (2, 12), (3, 13)):
            assert ids(claim(bench, 1, worker="new")) == [expected[0]], "woken and handed out in one call"
            assert ids(claim(bench, 1, worker="old")) == [expected[1]]
        assert claim(bench, worker="old") == claim(bench, worker="new") == []

    def test_many_unrouted_jobs_do_not_hide_the_others(self, bench: Bench) -> None:
        bench.put([row(bench, number, action="bill") for number in range(1, 251)])
        bench.advance(5)
        bench.put([row(bench, 900)])
        bench.broker.announce("old", lanes_of(bench), "{}", 15_000, frozenset({ACT}))
        found = [ids(claim(bench, worker="old")) for _ in range(4)]
        assert found[-1] == [900] or [900] in found, "at most 100 are moved aside a call"
        bench.broker.announce("new", lanes_of(bench), "{}", 15_000, frozenset({BILL}))
        woken = [ids(claim(bench, 1000, worker="new")) for _ in range(4)]
        assert sorted(number for page in woken for number in page) == list(range(1, 251))

    def test_an_unrouted_job_can_be_reprioritized_and_discarded(self, bench: Bench) -> None:
        job, other = row(bench, 1, action="bill"), row(bench, 2, action="bill")
        bench.put([job, other])
        bench.broker.announce("old", lanes_of(bench), "{}", 15_000, frozenset({ACT}))
        assert claim(bench, worker="old") == []
        assert bench.broker.reprioritize(other, 0)
        assert bench.broker.discard(job)
        assert bench.broker.locate([job, other]) == [Place.NOWHERE, Place.UNROUTED]
        bench.broker.withdraw("old")
        ((found),) = claim(bench, worker="old")
        assert (ids([found]), found.priority) == ([2], 0)
