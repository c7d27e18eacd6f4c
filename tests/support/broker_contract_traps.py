"""Test the broker contract: known traps of Redis Streams.

Waiting jobs are in sorted sets and leases in a hash (decision 0003), so some traps cannot occur: *trimming* drops
unread entries of a stream; *deleting* from a stream leaves holes that occupy memory; *many streams* cost a blocked
reader each, whereas a worker blocks on one list. ``OrderCases`` tests *idempotent adding* (published bits).
"""

from __future__ import annotations

from sidestream.broker.protocol import Capability, Delivery, lane
from sidestream.job.outcome import Release
from tests.support.broker_contract import LEASE_MS, RENEW_MS, Bench, claim, ids, lanes_of, row
from tests.support.broker_contract_leases import keep_alive, reclaim


class TrapCases:
    """Traps of the pending entries list of a stream."""

    needs = Capability.PUBLISHED

    def test_trap_pending_list_growth(self, bench: Bench) -> None:
        """In a stream, an acknowledged entry must also be deleted. Here, settling ends the lease."""
        for start in range(1, 1001, 100):
            bench.put([row(bench, number) for number in range(start, start + 100)])
            bench.end(claim(bench, 100))
        keep_alive(bench, LEASE_MS + 100)
        assert reclaim(bench).deliveries == []
        assert bench.broker.publish([row(bench, number) for number in range(1, 11)]) == 10, "nothing of them is left"

    def test_trap_autoclaim_scans_from_the_start(self, bench: Bench) -> None:
        """In a stream, many fresh entries hide late ones from a scan. Here, late ones are found by age."""
        bench.put([row(bench, number) for number in range(1, 1202)])
        fresh = claim(bench, 1200, worker="alive")
        (late,) = claim(bench, 1, worker="failed")
        for _ in range(4):
            bench.advance(LEASE_MS // 3)
            bench.broker.renew("alive", [one.lease for one in fresh])
        assert [one.reference for one, _ in reclaim(bench).deliveries] == [late.reference]

    def test_trap_equal_idle_time(self, bench: Bench) -> None:
        """The documentation of streams says "greater than", and the source uses "equal". Here, a lease ends on time."""
        bench.put([row(bench, 1)])
        claim(bench)
        keep_alive(bench, LEASE_MS - 1)
        assert reclaim(bench).deliveries == []
        bench.advance(1)
        assert len(reclaim(bench).deliveries) == 1

    def test_trap_a_renewal_steals_from_the_new_owner(self, bench: Bench) -> None:
        """XCLAIM with idle 0 takes a message from its new owner. Here, the old lease has no effect."""
        bench.put([row(bench, 1)])
        (old,) = claim(bench)
        keep_alive(bench, LEASE_MS + 100)
        ((new, _),) = reclaim(bench).deliveries
        assert bench.broker.renew("w1", [old.lease]) == [old.lease]
        assert bench.broker.renew("w1", [old.lease._replace(worker="w2")]) != []
        assert bench.broker.renew("w2", [new.lease]) == []
        assert bench.broker.settle([new]) == []

    def test_trap_min_idle_against_long_jobs(self, bench: Bench) -> None:
        """A job that runs for longer than the lease keeps it while it is renewed."""
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        for _ in range(5 * LEASE_MS // RENEW_MS):
            bench.advance(RENEW_MS)
            assert bench.broker.renew("w1", [one.lease]) == []
            assert reclaim(bench).deliveries == []

    def test_trap_delivery_counter_counts_renewals(self, bench: Bench) -> None:
        """In a stream, renewals without JUSTID count as deliveries. Here, only takeovers count."""
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
        """In XREADGROUP, COUNT applies per stream, without priorities. Here, ``free`` bounds the whole claim."""
        queues = ("default", "second", "third")
        for at, queue in enumerate(queues):
            bench.put([row(bench, at * 100 + number, queue=queue) for number in range(1, 51)])
        lanes = [lane(bench.database, queue) for queue in queues]
        found = bench.broker.claim("w1", lanes, free=30)
        assert len(found) == 30
        assert {one.lane: sum(other.lane == one.lane for other in found) for one in found} == dict.fromkeys(lanes, 10)

    def test_trap_a_removed_worker_discards_its_pending(self, bench: Bench) -> None:
        """XGROUP DELCONSUMER drops a worker's entries. Here, they can still be settled or reclaimed."""
        bench.broker.announce("w1", lanes_of(bench), "{}", 15_000)
        bench.put([row(bench, 1), row(bench, 2)])
        first, second = claim(bench)
        bench.broker.withdraw("w1")
        bench.end([first])
        keep_alive(bench, LEASE_MS + 100)
        assert ids([one for one, _ in reclaim(bench).deliveries]) == ids([second])

    def test_trap_a_cancelled_entry_spoils_the_counts(self, bench: Bench) -> None:
        """XDEL of a queued entry makes the lag unknown. Here, only the cancelled job is removed."""
        jobs = [row(bench, number) for number in range(1, 6)]
        bench.put(jobs)
        for job in jobs[1:4]:
            assert bench.broker.discard(job)
        found: list[Delivery] = claim(bench)
        assert ids(found) == [1, 5]

    def test_trap_a_reader_comes_back_to_its_own_history(self, bench: Bench) -> None:
        """Reading own pending entries again counts as a delivery. Here, held jobs are not claimed again."""
        bench.put([row(bench, 1)])
        (one,) = claim(bench)
        assert claim(bench) == []
        assert bench.broker.renew("w1", [one.lease]) == []
