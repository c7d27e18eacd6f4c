"""Test the broker contract: leases, generations and direct jobs."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from sidestream.broker.protocol import CHUNK, Delivery, Place, Reclaimed
from sidestream.errors import BrokerUnavailable, StaleGeneration
from sidestream.job.outcome import Release
from sidestream.job.rules import Rules
from tests.support.broker_contract import LEASE_MS, RENEW_MS, Bench, claim, direct, ids, lanes_of, row


def reclaim(bench: Bench, worker: str = "w2") -> Reclaimed:
    """Reclaim as another worker."""
    return bench.broker.reclaim(worker, lanes_of(bench), lease_ms=LEASE_MS, grace_ms=RENEW_MS)


def keep_alive(bench: Bench, ms: int) -> None:
    """Let time pass with regular calls, so that the broker sees no gap."""
    for _ in range(ms // 5000):
        bench.advance(5000)
        bench.broker.claim("somebody", [f"{bench.database.hex()}:nothing"], free=1)
    bench.advance(ms % 5000)


class LeaseCases:
    """Leases, and the deliveries that belong to their holder only."""

    def test_settling_twice(self, bench: Bench) -> None:
        bench.put([row(bench, 1), row(bench, 2)])
        first, second = claim(bench)
        assert bench.broker.settle([first]) == []
        assert bench.broker.settle([first, second]) == [first.lease]
        assert claim(bench) == []

    def test_an_expired_lease_is_reclaimed_and_its_old_token_is_invalid(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (old,) = claim(bench)
        keep_alive(bench, LEASE_MS - 1000)
        assert reclaim(bench).deliveries == []
        keep_alive(bench, 1100)
        found = reclaim(bench)
        assert not found.more
        ((new, loser),) = found.deliveries
        assert (new.reference, loser) == (old.reference, "w1")
        assert (new.lease.worker, new.lease.deliveries) == ("w2", 2)
        assert bench.broker.renew("w1", [old.lease]) == [old.lease]
        assert bench.broker.settle([old]) == [old.lease]
        assert bench.broker.release(old, Release()) == -1
        assert bench.broker.fail(old, "no") is False
        assert bench.broker.renew("w2", [new.lease]) == []
        assert bench.broker.settle([new]) == []

    def test_a_renewed_lease_is_not_taken(self, bench: Bench) -> None:
        bench.put([row(bench, number) for number in range(1, 31)])
        held = claim(bench, 30)
        for _ in range(4):
            bench.advance(LEASE_MS // 3)
            assert bench.broker.renew("w1", [one.lease for one in held[:20]]) == []
        assert sorted(ids([one for one, _ in reclaim(bench).deliveries])) == list(range(21, 31))

    def test_a_lease_expires_although_the_clock_was_set_back(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (old,) = claim(bench)
        bench.advance(-3_600_000)
        assert reclaim(bench).deliveries == []
        keep_alive(bench, LEASE_MS - 1000)
        assert reclaim(bench).deliveries == []
        keep_alive(bench, 1100)
        ((_, loser),) = reclaim(bench).deliveries
        assert loser == old.lease.worker

    def test_a_worker_renews_only_its_own_leases(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (held,) = claim(bench)
        assert bench.broker.renew("w2", [held.lease]) == [held.lease]

    def test_a_round_of_reclaims_reaches_every_late_delivery(self, bench: Bench) -> None:
        bench.put([row(bench, number) for number in range(1, 1351)])
        alive = claim(bench, 1100, worker="alive")
        late = claim(bench, 250, worker="late")
        for _ in range(4):
            bench.advance(LEASE_MS // 3)
            bench.broker.renew("alive", [one.lease for one in alive])
        found: list[Delivery] = []
        calls = 0
        while calls < 20:
            calls += 1
            page = reclaim(bench)
            assert len(page.deliveries) <= 100
            found += (one for one, _ in page.deliveries)
            if not page.more:
                break
        assert sorted(ids(found)) == sorted(ids(late))
        assert calls <= 4

    def test_after_a_gap_owners_have_time_to_renew(self, bench: Bench) -> None:
        bench.put([row(bench, 1), row(bench, 2)])
        kept, lost = claim(bench)
        bench.advance(4 * LEASE_MS)  # everything was suspended, so no lease could be renewed
        assert reclaim(bench).deliveries == []
        assert bench.broker.renew("w1", [kept.lease]) == []
        bench.advance(RENEW_MS - 100)
        assert reclaim(bench).deliveries == []
        bench.advance(200)
        assert ids([one for one, _ in reclaim(bench).deliveries]) == ids([lost])

    def test_only_these_lanes_are_reclaimed(self, bench: Bench) -> None:
        bench.put([row(bench, 1), row(bench, 2)._replace(lane=f"{bench.database.hex()}:other")])
        bench.broker.claim("w1", [*lanes_of(bench), f"{bench.database.hex()}:other"], free=2)
        keep_alive(bench, LEASE_MS + 100)
        assert ids([one for one, _ in reclaim(bench).deliveries]) == [1]

    def test_a_reclaimed_job_goes_back_to_its_place(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k"), row(bench, 2, "k"), row(bench, 3)])
        before = claim(bench)
        keep_alive(bench, LEASE_MS + 100)
        for one, _ in reclaim(bench).deliveries:
            assert bench.broker.release(one, Release(count=False)) == 0
        again = claim(bench)
        assert ids(again) == [1, 3]
        assert again[0].ready_ms == before[0].ready_ms

    def test_releases_are_counted_until_a_charge(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        counts = []
        for count in (True, True, False, True):
            (one,) = claim(bench)
            counts.append(bench.broker.release(one, Release(count=count)))
        assert counts == [1, 2, 2, 3]
        (one,) = claim(bench)
        assert one.releases == 3
        assert bench.broker.release(one, Release(charge_attempt=True)) == 0
        (one,) = claim(bench)
        assert (one.releases, one.attempts) == (0, 0), "a row's attempts are counted in the row"

    def test_the_delay_grows_with_the_releases(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        for delay in (50, 100, 200, 400):
            (one,) = claim(bench)
            released = bench.now()
            bench.broker.release(one, Release(delay_ms=None))
            bench.advance(delay - 30)
            early = claim(bench)
            if early:
                # With a real clock, the delay may have passed on a slow machine.
                assert bench.now() >= released + delay, f"claimable again before its {delay} ms were over"
                bench.broker.release(early[0], Release(delay_ms=0, count=False))
            bench.advance(40)
        assert ids(claim(bench)) == [1]


class ContentsCases:
    """Generations, and how their contents are rebuilt."""

    def test_every_call_is_refused_before_a_generation_begins(self, empty_bench: Bench) -> None:
        broker, lanes = empty_bench.broker, lanes_of(empty_bench)
        assert broker.generation().number == 0
        for call in (
            lambda: broker.publish([row(empty_bench, 1)]),
            lambda: broker.claim("w1", lanes, free=1),
            lambda: broker.published(empty_bench.database, 0),
            lambda: broker.announce("w1", lanes, "{}", 1000),
        ):
            with pytest.raises(StaleGeneration):
                call()
        first = broker.begin_generation()
        assert first.number > 0
        assert broker.begin_generation() == first
        assert broker.publish([row(empty_bench, 1)]) == 1

    def test_synced_databases(self, bench: Bench) -> None:
        assert bench.broker.generation([bench.database]).synced == frozenset()
        bench.broker.mark_synced(bench.database)
        assert bench.second().generation([b"elsewher", bench.database]).synced == {bench.database.hex()}
        assert bench.second().generation([b"elsewher"]).synced == frozenset()

    def test_announcing_and_withdrawing(self, bench: Bench) -> None:
        bench.broker.announce("w1", lanes_of(bench), '{"host": "here"}', 15_000)
        bench.broker.withdraw("w1")

    def test_jobs_that_a_withdrawn_reader_did_not_read_are_not_lost(self, bench: Bench) -> None:
        bench.broker.announce("w1", lanes_of(bench), "{}", 15_000)
        assert claim(bench, 2, wait_ms=30) == []
        bench.put([row(bench, 1, "k"), row(bench, 2)])
        bench.broker.withdraw("w1")
        assert ids(claim(bench, worker="w2")) == [1, 2]

    def test_published_bits(self, bench: Bench) -> None:
        broker, numbers = bench.broker, [1, 9, CHUNK - 1, CHUNK, 5 * CHUNK + 12]
        bench.put([row(bench, number) for number in numbers])

        def known() -> list[int]:
            found: list[int] = []
            for chunk in range(6):
                for at, byte in enumerate(broker.published(bench.database, chunk)):
                    found += (chunk * CHUNK + at * 8 + bit for bit in range(8) if byte & (0x80 >> bit))
            return found

        assert known() == numbers
        assert broker.published(b"otherone", 0) == b""
        held = claim(bench)
        assert known() == numbers
        bench.end(held[1:])
        assert known() == [1]
        broker.release(held[0], Release(delay_ms=5000))
        assert known() == [1]

    def test_an_emptied_broker_reports_a_stale_generation(self, bench: Bench) -> None:
        second = bench.second()
        bench.put([row(bench, 1)])
        (held,) = claim(bench)
        before = bench.broker.generation()
        self.empty(bench)
        for call in (
            lambda: claim(bench),
            lambda: bench.broker.renew("w1", [held.lease]),
            lambda: bench.broker.settle([held]),
            lambda: bench.broker.release(held, Release()),
            lambda: bench.broker.publish([row(bench, 1)]),
            lambda: reclaim(bench),
            lambda: bench.broker.locate([row(bench, 1)]),
            lambda: bench.broker.discard(row(bench, 1)),
            lambda: bench.broker.reassert("w1", [held]),
            lambda: bench.broker.withdraw("w1"),
        ):
            with pytest.raises(StaleGeneration):
                call()
        after = second.begin_generation()
        assert after.number != before.number
        assert after.synced == frozenset()
        with pytest.raises(StaleGeneration):
            claim(bench)
        assert bench.broker.generation() == after
        assert claim(bench) == []

    def test_reasserting_what_runs(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k"), row(bench, 3), row(bench, 4), row(bench, 7, "k")])
        held = claim(bench)
        bench.broker.publish([direct(bench)])
        held += claim(bench)
        self.empty(bench)
        bench.broker.begin_generation()
        bench.broker.configure(bench.database, Rules())
        second = bench.second()
        # Before the leases are restated, another worker claims job 4, and the rest is published again.
        assert second.publish([row(bench, 4)]) == 1
        (foreign,) = second.claim("w2", lanes_of(bench), free=1)
        assert second.publish([row(bench, 3), row(bench, 7, "k")]) == 2
        ours = bench.broker.reassert("w1", held)
        assert [one.reference for one in ours] == [one.reference for one in held if one.reference != foreign.reference]
        assert ours[-1].payload == b"signed bytes"
        assert claim(bench) == [], "3 is not handed out again, 7 waits behind 1"
        assert bench.broker.publish([row(bench, 1, "k")]) == 0, "its bit is set"
        assert bench.broker.renew("w1", [one.lease for one in ours]) == []
        assert bench.broker.settle(held) == [one.lease for one in held], "leases of another life"
        bench.end(ours)
        assert ids(claim(bench)) == [7]

    def test_a_closed_broker(self, bench: Bench) -> None:
        bench.broker.close()
        with pytest.raises(BrokerUnavailable):
            claim(bench)

    def empty(self, bench: Bench) -> None:
        """Delete the contents of the broker."""
        bench.wipe()  # type: ignore[attr-defined]  # only benches that can


class DirectCases:
    """Jobs without a row."""

    def test_the_payload_is_delivered(self, bench: Bench) -> None:
        job = direct(bench)
        assert bench.broker.publish([job, job]) == 1
        assert bench.broker.publish([job]) == 0
        (one,) = claim(bench)
        assert (one.reference, one.payload) == (job.reference, b"signed bytes")
        assert (one.attempts, one.crashes) == (0, 0)
        assert bench.broker.publish([job]) == 0
        bench.broker.settle([one])
        assert claim(bench) == []

    def test_the_payload_is_delivered_to_a_waiting_reader(self, bench: Bench) -> None:
        assert claim(bench, 1, wait_ms=30) == []
        job = direct(bench)._replace(payload=bytes(range(256)))
        bench.broker.publish([job])
        (one,) = claim(bench, 1, wait_ms=500)
        assert one.payload == bytes(range(256))

    def test_attempts_and_crashes_are_counted(self, bench: Bench) -> None:
        bench.broker.publish([direct(bench)])
        seen = []
        for crash in (False, True, True):
            (one,) = claim(bench)
            bench.broker.release(one, Release())
            (one,) = claim(bench)
            seen.append((one.attempts, one.crashes, one.releases))
            bench.broker.release(one, Release(delay_ms=500, charge_attempt=True, charge_crash=crash))
            assert claim(bench) == []
            bench.advance(600)
        (one,) = claim(bench)
        seen.append((one.attempts, one.crashes, one.releases))
        assert seen == [(0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 2, 0)]
        keep_alive(bench, LEASE_MS + 100)
        ((taken, _),) = reclaim(bench).deliveries
        assert (taken.attempts, taken.crashes, taken.payload) == (3, 2, b"signed bytes")

    def test_a_failed_job_is_not_claimed_again(self, bench: Bench) -> None:
        job, behind = direct(bench, "k"), direct(bench, "k")
        bench.broker.publish([job])
        bench.advance(5)
        bench.broker.publish([behind])
        (one,) = claim(bench)
        assert bench.broker.fail(one, "it broke") is True
        assert bench.broker.publish([job]) == 0
        assert [one.reference for one in claim(bench)] == [behind.reference]

    def test_one_behind_its_key_is_explained_and_discarded(self, bench: Bench) -> None:
        jobs = [direct(bench, "k", uuid4()) for _ in range(3)]
        for job in jobs:
            bench.broker.publish([job])
            bench.advance(5)
        told = bench.broker.explain(jobs[1])
        assert (told.place, told.holders) == (Place.BEHIND_KEY, (jobs[0].reference,))
        assert bench.broker.discard(jobs[1])
        assert not bench.broker.discard(jobs[1])
        assert bench.broker.explain(jobs[1]).place is Place.NOWHERE
        for expected in (jobs[0], jobs[2]):
            (one,) = claim(bench)
            assert one.reference == expected.reference
            assert not bench.broker.discard(expected), "it is handed off"
            bench.end([one])

    def test_keys_of_direct_jobs(self, bench: Bench) -> None:
        jobs = [direct(bench, "k", uuid4()) for _ in range(3)]
        for job in jobs:
            bench.broker.publish([job])
            bench.advance(5)
        bench.put([row(bench, 1, "k")])
        order: list[bytes] = []
        held: Sequence[Delivery] = claim(bench)
        assert len(held) == 2, "a row and a direct job with the same key do not wait for each other"
        while held:
            order += (one.reference for one in held if one.payload)
            bench.end(held)
            held = claim(bench)
        assert order == [job.reference for job in jobs]
