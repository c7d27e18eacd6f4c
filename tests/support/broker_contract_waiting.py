"""Test the broker contract: claims that wait for a first job."""

from __future__ import annotations

import time

from sidestream.broker.protocol import Delivery
from tests.support.broker_contract import Bench, claim, ids, lanes_of, row, running


class WaitingCases:
    """Claims that find no job and wait for the first one."""

    def test_an_empty_broker_delivers_nothing(self, bench: Bench) -> None:
        began = time.monotonic()
        assert claim(bench, 1, wait_ms=150) == []
        assert 0.1 < time.monotonic() - began < 5.0

    def test_without_free_children_nobody_waits(self, bench: Bench) -> None:
        began = time.monotonic()
        assert claim(bench, 0, 5, wait_ms=20_000) == []
        assert time.monotonic() - began < 5.0

    def test_a_published_job_wakes_the_reader(self, bench: Bench) -> None:
        second, got = bench.second(), []
        with running(lambda: got.extend(second.claim("w2", lanes_of(bench), free=2, wait_ms=20_000))):
            wait_until_blocked(bench)
            began = time.monotonic()
            bench.put([row(bench, 7)])
        assert ids(got) == [7]
        assert time.monotonic() - began < 5.0
        assert second.settle(got) == []

    def test_the_next_of_a_key_wakes_the_reader(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k"), row(bench, 2, "k")])
        (head,) = claim(bench)
        second, got = bench.second(), []
        with running(lambda: got.extend(second.claim("w2", lanes_of(bench), free=1, wait_ms=10_000))):
            wait_until_blocked(bench)
            bench.end([head])
        assert ids(got) == [2]

    def test_a_reader_gets_no_more_than_it_has_children(self, bench: Bench) -> None:
        second, got = bench.second(), []
        with running(lambda: got.extend(second.claim("w2", lanes_of(bench), free=2, wait_ms=10_000))):
            wait_until_blocked(bench)
            bench.put([row(bench, number) for number in range(1, 6)])
        assert ids(got) == [1, 2]
        assert ids(claim(bench)) == [3, 4, 5]

    def test_a_due_time_ends_the_wait(self, bench: Bench) -> None:
        bench.put([row(bench, 1, due=bench.now() + 300)])
        got: list[Delivery] = []
        with running(lambda: got.extend(claim(bench, 1, wait_ms=10_000))):
            bench.advance(400)
        assert ids(got) == [1]


def wait_until_blocked(bench: Bench) -> None:
    """Return when a claim waits."""
    deadline = time.monotonic() + 10
    while not bench.somebody_waits():
        assert time.monotonic() < deadline, "no reader began to wait within 10 s"
