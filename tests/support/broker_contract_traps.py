"""The broker contract as tests: the traps of Redis Streams, each under its name.

What waits is kept in sorted sets and leases in a hash (decision 0003), so some traps have no place to happen:
*trimming* drops unread entries of a stream, and nothing here is trimmed; *deleting* from a stream leaves holes that pin
memory, and a job here is one member that goes with it; *many streams* cost a blocked reader each, and a reader here
blocks on one list of its own; *idempotent adding* is a matter of the known bits (``OrderCases``).
"""

from __future__ import annotations

from sidestream.broker.protocol import Capability, Delivery, lane
from sidestream.job.outcome import Release
from tests.support.broker_contract import LEASE_MS, RENEW_MS, Bench, claim, ids, lanes_of, row
from tests.support.broker_contract_leases import keep_alive, reclaim


class TrapCases:
    """What goes wrong with the pending entries list of a stream."""

    needs = Capability.PUBLISHED

    def test_trap_pending_list_growth(self, bench: Bench) -> None:
        """An entry stays pending until it is acknowledged *and* deleted; here the end of a job ends its lease."""
        for start in range(1, 1001, 100):
            bench.put([row(bench, number) for number in range(start, start + 100)])
            bench.end(claim(bench, 100))
        keep_alive(bench, LEASE_MS + 100)
        assert reclaim(bench).deliveries == []
        assert bench.broker.publish([row(bench, number) for number in range(1, 11)]) == 10, "nothing of them is left"

    def test_trap_autoclaim_scans_from_the_start(self, bench: Bench) -> None:
        """A scan from 0-0 never gets past ten times COUNT fresh entries; here the late ones are found by their age."""
        bench.put([row(bench, number) for number in range(1, 1202)])
        fresh = claim(bench, 1200, worker="alive")
        (late,) = claim(bench, 1, worker="failed")
        for _ in range(4):
            bench.advance(LEASE_MS // 3)
            bench.broker.renew("alive", [one.lease for one in fresh])
        assert [one.reference for one, _ in reclaim(bench).deliveries] == [late.reference]

    def test_trap_equal_idle_time(self, bench: Bench) -> None:
        """The documentation says "greater than", the source claims at equal; here a lease ends exactly at its time."""
        bench.put([row(bench, 1)])
        claim(bench)
        keep_alive(bench, LEASE_MS - 1)
        assert reclaim(bench).deliveries == []
        bench.advance(1)
        assert len(reclaim(bench).deliveries) == 1

    def test_trap_a_renewal_steals_from_the_new_owner(self, bench: Bench) -> None:
        """XCLAIM with idle 0 takes a message from its new owner; here the old lease is refused."""
        bench.put([row(bench, 1)])
        (old,) = claim(bench)
        keep_alive(bench, LEASE_MS + 100)
        ((new, _),) = reclaim(bench).deliveries
        assert bench.broker.renew("w1", [old.lease]) == [old.lease]
        assert bench.broker.renew("w1", [old.lease._replace(worker="w2")]) != []
        assert bench.broker.renew("w2", [new.lease]) == []
        assert bench.broker.settle([new]) == []

    def test_trap_min_idle_against_long_jobs(self, bench: Bench) -> None:
        """A job that is longer than the lease runs on for as long as it is renewed."""
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        for _ in range(5 * LEASE_MS // RENEW_MS):
            bench.advance(RENEW_MS)
            assert bench.broker.renew("w1", [one.lease]) == []
            assert reclaim(bench).deliveries == []

    def test_trap_delivery_counter_counts_renewals(self, bench: Bench) -> None:
        """A renewal without JUSTID counts as a delivery, so a long job looks like poison; here take-overs count."""
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        for _ in range(10):
            bench.advance(RENEW_MS)
            bench.broker.renew("w1", [one.lease])
        keep_alive(bench, LEASE_MS + 100)
        ((taken, _),) = reclaim(bench).deliveries
        assert taken.lease.deliveries == 2
        bench.broker.release(taken, Release(count=False))
        (again,) = claim(bench)
        assert again.lease.deliveries == 1

    def test_trap_count_is_per_stream(self, bench: Bench) -> None:
        """COUNT is per stream, and the order of the names no priority; here ``free`` is all that a claim gets."""
        queues = ("default", "second", "third")
        for at, queue in enumerate(queues):
            bench.put([row(bench, at * 100 + number, queue=queue) for number in range(1, 51)])
        lanes = [lane(bench.database, queue) for queue in queues]
        found = bench.broker.claim("w1", lanes, free=30)
        assert len(found) == 30
        assert {one.lane: sum(other.lane == one.lane for other in found) for one in found} == dict.fromkeys(lanes, 10)

    def test_trap_a_removed_worker_discards_its_pending(self, bench: Bench) -> None:
        """XGROUP DELCONSUMER throws away what a worker holds; here it can be settled still, or is reclaimed."""
        bench.broker.announce("w1", lanes_of(bench), "{}", 15_000)
        bench.put([row(bench, 1), row(bench, 2)])
        first, second = claim(bench)
        bench.broker.withdraw("w1")
        bench.end([first])
        keep_alive(bench, LEASE_MS + 100)
        assert ids([one for one, _ in reclaim(bench).deliveries]) == ids([second])

    def test_trap_a_cancelled_entry_spoils_the_counts(self, bench: Bench) -> None:
        """XDEL of a queued entry makes lag unknown; here a cancelled job is no longer anywhere, the others are."""
        jobs = [row(bench, number) for number in range(1, 6)]
        bench.put(jobs)
        for job in jobs[1:4]:
            assert bench.broker.discard(job)
        found: list[Delivery] = claim(bench)
        assert ids(found) == [1, 5]

    def test_trap_a_reader_comes_back_to_its_own_history(self, bench: Bench) -> None:
        """Reading one's own pending entries again counts and may answer nil; here what is held is not claimed again."""
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        assert claim(bench) == []
        assert bench.broker.renew("w1", [one.lease]) == []
