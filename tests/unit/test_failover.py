"""The failover broker: which broker is used before, during and after an outage."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sidestream.broker.failover import FailoverBroker
from sidestream.broker.protocol import Broker, Capability, Delivery, Lease
from sidestream.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnsuitable, StaleGeneration
from sidestream.job.outcome import Release
from tests.support.clock import ManualClock

LANES = ("00" * 8 + ":default",)
LONGEST = 5.0
"""Seconds of the longest pause before a probe."""


class Scripted:
    """A broker that follows a script: deliveries, recorded calls and errors."""

    capabilities = frozenset({Capability.LEASES, Capability.PUBLISHED})

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.calls: list[str] = []
        self.down: BrokerError | None = None
        self.claims_fail: BrokerError | None = None
        self.ready: list[bytes] = []
        self.lost: list[Lease] = []
        self.released: list[Delivery] = []
        self.settled: list[Delivery] = []
        self.refused: set[bytes] = set()
        self.others: Callable[[], Sequence[Delivery]] = list

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.down is not None:
            raise self.down

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        self._called("claim")
        if self.claims_fail is not None:
            raise self.claims_fail
        taken, self.ready = self.ready[:free], self.ready[free:]
        return [Delivery(raw, lanes[0], Lease(self.prefix + raw, worker, 1), 0) for raw in taken]

    def count_others(self, held: Callable[[], Sequence[Delivery]]) -> None:
        self.others = held

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        self._called("settle")
        self.settled.extend(deliveries)
        return []

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        self._called("renew")
        return [lease for lease in leases if lease in self.lost]

    def release(self, delivery: Delivery, release: Release) -> int:
        self._called("release")
        self.released.append(delivery)
        return 0

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        self._called("reassert")
        taken = [d for d in deliveries if d.reference not in self.refused]
        return [d._replace(lease=d.lease._replace(entry=d.lease.entry + b"'")) for d in taken]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in dir(Broker):
            raise AttributeError(name)
        return lambda *args, **options: self._called(name)


class Pair:
    """A failover broker over two scripted ones."""

    def __init__(self, *, fallback: bool = True) -> None:
        self.primary = Scripted()
        self.fallback = Scripted(b"pg:")
        self.clock = ManualClock()
        self.broker = FailoverBroker(
            self.primary, self.fallback if fallback else None, self.clock, longest_pause=LONGEST
        )

    def claim(self, free: int = 10) -> list[Delivery]:
        return self.broker.claim("me", LANES, free=free)

    def lose(self) -> None:
        self.primary.down = BrokerUnavailable("frozen")
        self.claim()

    def bring_back(self, *held: Delivery) -> list[Delivery]:
        """Let the primary answer again and state ``held`` to it; return what is held now."""
        self.primary.down = None
        self.clock.advance(LONGEST)
        assert self.broker.probe()
        return self.broker.reassert("me", held)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_healthy_primary_is_used_alone(pair: Pair) -> None:
    pair.primary.ready = [b"a"]
    [delivery] = pair.claim()
    assert pair.broker.settle([delivery]) == []
    assert pair.broker.probe()
    assert pair.primary.calls == ["claim", "settle"]
    assert pair.fallback.calls == []
    assert pair.broker.away_since is None


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), BrokerFull("full"), BrokerUnsuitable("read-only")])
def test_a_failed_claim_fails_over_immediately(
    pair: Pair, error: BrokerError, caplog: pytest.LogCaptureFixture
) -> None:
    pair.primary.claims_fail = error
    pair.fallback.ready = [b"a", b"b"]
    with caplog.at_level(logging.WARNING):
        assert [d.reference for d in pair.claim(1)] == [b"a"]
        assert [d.reference for d in pair.claim(1)] == [b"b"]
    assert pair.primary.calls == ["claim"]
    assert pair.broker.away_since == pair.clock.now()
    assert [record.getMessage() for record in caplog.records] == [
        f"The broker is away, jobs are taken from PostgreSQL meanwhile: {error}"
    ]


def test_without_a_fallback_the_error_is_raised() -> None:
    pair = Pair(fallback=False)
    pair.primary.claims_fail = BrokerFull("no memory left")
    with pytest.raises(BrokerFull, match="no memory left"):
        pair.claim()
    with pytest.raises(BrokerUnavailable, match="no memory left"):
        pair.claim()
    assert pair.primary.calls == ["claim"]


def test_a_stale_generation_is_no_outage(pair: Pair) -> None:
    pair.primary.claims_fail = StaleGeneration()
    with pytest.raises(StaleGeneration):
        pair.claim()
    assert pair.broker.away_since is None


def test_calls_for_an_unavailable_primary_are_refused_without_asking_it(pair: Pair) -> None:
    pair.primary.ready = [b"a"]
    [delivery] = pair.claim()
    pair.lose()
    asked = len(pair.primary.calls)
    for call in (
        lambda: pair.broker.settle([delivery]),
        lambda: pair.broker.renew("me", [delivery.lease]),
        lambda: pair.broker.release(delivery, Release()),
        lambda: pair.broker.fail(delivery, "x"),
        lambda: pair.broker.publish([]),
        lambda: pair.broker.generation(),
        lambda: pair.broker.begin_generation(),
        lambda: pair.broker.mark_synced(bytes(8)),
        lambda: pair.broker.announce("me", LANES, "{}", 1),
        lambda: pair.broker.withdraw("me"),
        lambda: pair.broker.reclaim("me", LANES, lease_ms=1, grace_ms=1),
        lambda: pair.broker.reassert("me", []),
        lambda: pair.broker.published(bytes(8), 0),
        lambda: pair.broker.locate([]),
    ):
        with pytest.raises(BrokerUnavailable, match="frozen"):
            call()
    assert len(pair.primary.calls) == asked


@pytest.mark.parametrize("call", ["settle", "renew", "publish"])
def test_an_unavailable_primary_is_noticed_by_any_call(pair: Pair, call: str) -> None:
    pair.primary.ready = [b"a"]
    [delivery] = pair.claim()
    pair.primary.down = BrokerUnavailable("gone")
    calls = {
        "settle": lambda: pair.broker.settle([delivery]),
        "renew": lambda: pair.broker.renew("me", [delivery.lease]),
        "publish": lambda: pair.broker.publish([]),
    }
    with pytest.raises(BrokerUnavailable):
        calls[call]()
    assert pair.broker.away_since is not None


def test_a_full_primary_that_refuses_a_publish_still_serves_claims(pair: Pair) -> None:
    pair.primary.down = BrokerFull("full")
    with pytest.raises(BrokerFull):
        pair.broker.publish([])
    assert pair.broker.away_since is None


def test_deliveries_of_the_fallback_are_settled_with_the_fallback(pair: Pair) -> None:
    pair.primary.ready = [b"p"]
    [from_primary] = pair.claim()
    pair.fallback.ready = [b"f", b"g"]
    pair.primary.down = BrokerUnavailable("gone")
    first, second = pair.claim()
    with pytest.raises(BrokerUnavailable):
        pair.broker.settle([from_primary, first])
    assert pair.fallback.settled == [first]
    with pytest.raises(BrokerUnavailable):
        pair.broker.renew("me", [from_primary.lease, second.lease])
    assert pair.fallback.calls[-1] == "renew"
    pair.bring_back()
    assert pair.broker.release(second, Release()) == 0
    assert pair.fallback.released == [second]
    # The settler repeats the whole batch: the part that is settled already is settled again without harm.
    assert pair.broker.settle([from_primary, first]) == []
    assert pair.primary.settled == [from_primary]


def test_the_primary_is_probed_on_schedule_and_used_again(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.lose()
    assert not pair.broker.probe()
    assert pair.primary.calls == ["claim"]
    pair.clock.advance(0.5)
    assert not pair.broker.probe()
    assert pair.primary.calls == ["claim", "published"]
    assert not pair.broker.probe()
    assert pair.primary.calls == ["claim", "published"]
    pair.primary.down = None
    pair.clock.advance(0.5)
    with caplog.at_level(logging.WARNING):
        assert pair.broker.probe()
        assert pair.broker.probe()
    assert [record.getMessage() for record in caplog.records] == [
        "The broker is away, jobs are taken from PostgreSQL meanwhile: frozen",
        "The broker is back after 1.0 s.",
    ]
    pair.primary.ready = [b"a"]
    assert [d.reference for d in pair.claim()] == [b"a"]


def test_a_primary_that_returns_empty_is_used_and_reports_a_stale_generation(pair: Pair) -> None:
    pair.lose()
    pair.primary.down = StaleGeneration()
    pair.clock.advance(0.5)
    assert pair.broker.probe()
    with pytest.raises(StaleGeneration):
        pair.claim()


def test_a_primary_that_refuses_claims_is_asked_less_and_less_often(pair: Pair) -> None:
    pair.primary.claims_fail = BrokerFull("full")
    pauses = []
    for _ in range(6):
        pair.claim()
        waited = 0.0
        while not pair.broker.probe():
            pair.clock.advance(0.5)
            waited += 0.5
        pauses.append(waited)
    assert pauses == [0.5, 1.0, 2.0, 4.0, LONGEST, LONGEST]
    pair.clock.advance(60)
    pair.claim()
    pair.clock.advance(0.5)
    assert pair.broker.probe(), "an outage after a healthy minute is a new one"


@pytest.mark.parametrize("first", ["primary", "fallback"])
def test_no_job_is_held_under_both_leases(pair: Pair, first: str) -> None:
    if first == "primary":
        pair.primary.ready = [b"a"]
        [held] = pair.claim()
        pair.lose()
        giver = pair.fallback
    else:
        pair.primary.down = BrokerUnavailable("gone")
        pair.fallback.ready = [b"a"]
        [held] = pair.claim()
        pair.bring_back()
        giver = pair.primary
    giver.ready = [b"a", b"b"]
    assert [d.reference for d in pair.claim()] == [b"b"]
    assert [d.reference for d in giver.released] == [b"a"]
    # Once the first lease ended, the job may come from the other side.
    if first == "primary":
        pair.bring_back()
    pair.broker.settle([held])
    if first == "primary":
        pair.lose()
    giver.ready = [b"a"]
    assert [d.reference for d in pair.claim()] == [b"a"]


@pytest.mark.parametrize("end", ["release", "fail"])
def test_a_job_that_cannot_be_settled_in_the_primary_comes_from_the_fallback(pair: Pair, end: str) -> None:
    pair.primary.ready = [b"a"]
    [ended] = pair.claim()
    pair.lose()
    tell = (
        (lambda: pair.broker.release(ended, Release())) if end == "release" else (lambda: pair.broker.fail(ended, ""))
    )
    with pytest.raises(BrokerUnavailable):
        tell()
    pair.fallback.ready = [b"a"]
    [again] = pair.claim()
    assert again.lease.entry == b"pg:a"
    # The primary is back, and gives it out as well: this side still runs it.
    pair.bring_back()
    tell()
    pair.broker.reassert("me", [])
    pair.primary.ready = [b"a"]
    assert pair.claim() == []
    assert [one.lease.entry for one in pair.primary.released][-1] == b"a"
    pair.broker.settle([again])
    assert pair.fallback.settled == [again]


def test_an_end_under_a_lease_that_was_lost_frees_no_other_lease(pair: Pair) -> None:
    pair.primary.ready = [b"a"]
    [held] = pair.claim()
    pair.lose()
    with pytest.raises(BrokerUnavailable):
        pair.broker.release(held._replace(lease=held.lease._replace(entry=b"older")), Release())
    pair.fallback.ready = [b"a"]
    assert pair.claim() == []


def test_a_lost_lease_is_forgotten(pair: Pair) -> None:
    pair.primary.ready = [b"a"]
    [held] = pair.claim()
    pair.primary.lost = [held.lease]
    assert pair.broker.renew("me", [held.lease]) == [held.lease]
    pair.lose()
    pair.fallback.ready = [b"a"]
    assert [d.reference for d in pair.claim()] == [b"a"]


def test_a_returning_primary_gives_no_job_before_it_knows_the_fallback_s_leases(pair: Pair) -> None:
    pair.primary.ready = [b"a"]
    [ours] = pair.claim()
    pair.primary.down = BrokerUnavailable("gone")
    pair.fallback.ready = [b"b"]
    [theirs] = pair.claim()
    assert pair.fallback.others() == [ours], "limits of the fallback count it"
    pair.primary.down = None
    pair.clock.advance(LONGEST)
    assert pair.broker.probe()
    pair.primary.ready = [b"c"]
    with pytest.raises(StaleGeneration):
        pair.claim()
    again = pair.broker.reassert("me", [ours, theirs])
    assert sorted(d.lease.entry for d in again) == [b"a'", b"pg:b'"]
    assert pair.fallback.settled == [theirs], "the primary holds it now"
    assert [d.reference for d in pair.claim()] == [b"c"]
    pair.primary.down = BrokerUnavailable("gone again")
    pair.claim()
    assert sorted(d.reference for d in pair.fallback.others()) == [b"a", b"b", b"c"]


def test_leases_that_the_primary_refuses_stay_with_the_fallback_and_are_restated(pair: Pair) -> None:
    pair.primary.down = BrokerUnavailable("gone")
    pair.fallback.ready = [b"a"]
    [theirs] = pair.claim()
    pair.primary.refused = {b"a"}
    assert pair.bring_back(theirs) == [theirs]
    assert pair.claim() == []
    assert pair.broker.renew("me", [theirs.lease]) == []
    with pytest.raises(StaleGeneration):
        pair.claim()
    pair.primary.refused = set()
    [moved] = pair.broker.reassert("me", [theirs])
    assert moved.lease.entry == b"pg:a'"
    assert pair.claim() == []


def test_a_job_claimed_again_before_its_settlement_is_restated_after_it(pair: Pair) -> None:
    pair.primary.ready = [b"a"]
    [ended] = pair.claim()
    pair.lose()
    with pytest.raises(BrokerUnavailable):
        pair.broker.settle([ended])
    assert pair.fallback.others() == [], "it holds no slot any more"
    pair.fallback.ready = [b"a"]
    [again] = pair.claim()
    assert pair.bring_back(again) == [again], "the primary would take the end for that of the new lease"
    pair.broker.settle([ended])
    with pytest.raises(StaleGeneration):
        pair.claim()
    assert [d.lease.entry for d in pair.broker.reassert("me", [again])] == [b"pg:a'"]


def test_a_late_answer_of_the_last_outage_does_not_start_another(pair: Pair) -> None:
    """Two threads hang on a frozen primary; one is answered after the probe has brought it back."""
    hanging, answer = threading.Event(), threading.Event()

    def hang(*args: Any, **options: Any) -> int:
        hanging.set()
        assert answer.wait(10)
        raise BrokerUnavailable("timed out")

    pair.primary.publish = hang  # type: ignore[method-assign]
    errors: list[BrokerError] = []

    def publish() -> None:
        try:
            pair.broker.publish([])
        except BrokerUnavailable as error:
            errors.append(error)

    late = threading.Thread(target=publish)
    late.start()
    assert hanging.wait(10)
    pair.lose()
    pair.bring_back()
    answer.set()
    late.join(10)
    assert len(errors) == 1
    assert pair.broker.away_since is None


def test_close_closes_both(pair: Pair) -> None:
    pair.broker.close()
    assert (pair.primary.calls, pair.fallback.calls) == (["close"], ["close"])
