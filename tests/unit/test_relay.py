"""The relay: callers never wait for an unavailable broker, and kept rows are published later."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from statistics import median

import pytest

from sidestream.broker.protocol import Publication
from sidestream.errors import (
    BrokerFull,
    BrokerUnavailable,
    BrokerUnsuitable,
    SettingsError,
    StaleGeneration,
)
from sidestream.relay.queue import CHUNK_SIZE
from sidestream.relay.relay import Relay
from tests.unit.relay_parts import ScriptedBroker, direct, eventually, row


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()


@pytest.fixture
def relay(broker: ScriptedBroker) -> Iterator[Relay]:
    relay = Relay(lambda: broker, wait=10, first_probe=0.02, last_probe=0.04)  # type: ignore[arg-type,return-value]
    yield relay
    if broker.hang is not None:
        broker.hang.set()
    relay.close()


@pytest.fixture
def hasty(broker: ScriptedBroker) -> Iterator[Relay]:
    """The same, for a broker that hangs: its callers wait as long as a user may."""
    relay = Relay(lambda: broker, wait=0.2, first_probe=0.02, last_probe=0.04)  # type: ignore[arg-type,return-value]
    yield relay
    if broker.hang is not None:
        broker.hang.set()
    relay.close()


def test_rows_are_published_before_the_call_returns(relay: Relay, broker: ScriptedBroker) -> None:
    assert relay.hand_over([row(1), row(2)])
    assert broker.all == [row(1), row(2)]
    assert not relay.broken


def test_an_empty_call_does_not_connect(broker: ScriptedBroker) -> None:
    relay = Relay(lambda: pytest.fail("connected"))
    assert relay.hand_over([])


def test_many_rows_go_in_chunks(relay: Relay, broker: ScriptedBroker) -> None:
    rows = [row(number) for number in range(1, 1201)]
    assert relay.hand_over(rows)
    assert [len(chunk) for chunk in broker.published] == [CHUNK_SIZE, CHUNK_SIZE, 200]
    assert broker.all == rows


def test_an_empty_broker_gets_a_generation_first(relay: Relay, broker: ScriptedBroker) -> None:
    broker.number = 0
    assert relay.hand_over([row(1)])
    assert broker.begun == 1


def test_a_stale_generation_is_read_again_and_published_to(relay: Relay, broker: ScriptedBroker) -> None:
    broker.errors = [StaleGeneration()]
    assert relay.hand_over([row(1)])
    assert broker.all == [row(1)]
    assert broker.looks == 2


def test_a_generation_that_keeps_changing_counts_as_an_outage(relay: Relay, broker: ScriptedBroker) -> None:
    broker.errors = [StaleGeneration(), StaleGeneration(), StaleGeneration()]
    assert not relay.hand_over([row(1)])
    eventually(lambda: broker.all == [row(1)], "published once it stands still")


def test_an_error_opens_the_breaker_and_kept_rows_are_published_in_order(relay: Relay, broker: ScriptedBroker) -> None:
    broker.error = BrokerUnavailable("Refused.")
    assert not relay.hand_over([row(1)])
    assert relay.broken
    assert not relay.hand_over([row(2)])
    assert relay.kept >= 1
    broker.error = None
    eventually(lambda: not relay.broken, "the breaker closes")
    assert broker.all == [row(1), row(2)]
    assert relay.hand_over([row(3)])


@pytest.mark.parametrize("error", [BrokerUnavailable(), BrokerFull(), BrokerUnsuitable(), SettingsError("No server.")])
def test_a_broker_that_cannot_be_connected_costs_one_short_wait(error: Exception) -> None:
    def connect() -> ScriptedBroker:
        raise error

    relay = Relay(connect, wait=10, first_probe=60)  # type: ignore[arg-type]
    started = time.monotonic()
    assert not relay.hand_over([row(1)])
    assert time.monotonic() - started < 5
    assert relay.broken
    assert relay.kept == 1
    relay.close()


def test_a_hanging_broker_costs_the_wait_once_then_nothing(hasty: Relay, broker: ScriptedBroker) -> None:
    broker.hang = threading.Event()
    costs = []
    for number in range(1, 102):
        started = time.monotonic()
        assert not hasty.hand_over([row(number)])
        costs.append(time.monotonic() - started)
    assert 0.19 < costs[0] < 5
    assert median(costs[1:]) < 0.005
    broker.hang.set()
    eventually(lambda: not hasty.broken, "the breaker closes")
    assert broker.all == [row(number) for number in range(1, 102)]


def test_callers_that_wait_together_stop_waiting_together(broker: ScriptedBroker) -> None:
    broker.hang = threading.Event()
    relay = Relay(lambda: broker, wait=1.5)  # type: ignore[arg-type,return-value]
    answers: list[bool] = []

    def call(number: int) -> None:
        answers.append(relay.hand_over([row(number)]))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(1, 9)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 8 * 1.5 / 2, "they waited one after the other"
    assert answers == [False] * 8
    broker.hang.set()
    relay.close()


def test_a_slow_bulk_delays_only_its_own_caller_and_does_not_open_the_breaker() -> None:
    slow = ScriptedBroker()
    publish = slow.publish

    go_on = threading.Event()

    def slowly(jobs: Sequence[Publication], *, force: bool = False) -> int:
        if len(slow.published) == 2:  # the third chunk outlasts every wait
            go_on.wait(30)
        return publish(jobs, force=force)

    slow.publish = slowly  # type: ignore[method-assign]
    relay = Relay(lambda: slow, wait=3)  # type: ignore[arg-type,return-value]
    bulk = [row(number) for number in range(1, 5 * CHUNK_SIZE)]
    assert not relay.hand_over(bulk)
    assert not relay.broken
    started = time.monotonic()
    assert not relay.hand_over([row(1_000_000)])
    assert time.monotonic() - started < 2.5
    go_on.set()
    relay.publish_direct(direct(), 30)
    eventually(lambda: len(slow.all) == len(bulk) + 2, "all is published")
    relay.close()
    assert [publication for publication in slow.all if publication != direct()] == [*bulk, row(1_000_000)]


def test_kept_rows_are_bounded_and_the_oldest_stay(broker: ScriptedBroker) -> None:
    broker.error = BrokerUnavailable("Refused.")
    relay = Relay(lambda: broker, wait=10, kept_limit=10, first_probe=0.02, last_probe=0.04)  # type: ignore[arg-type,return-value]
    relay.hand_over([row(number) for number in range(1, 8)])
    for number in range(8, 30):
        relay.hand_over([row(number)])
    # While a probe is under way the thread holds its chunk: the limit is on what waits, and the chunk comes back first.
    eventually(lambda: relay.kept == 10, "kept to the limit")
    broker.error = None
    eventually(lambda: not relay.broken, "the breaker closes")
    assert broker.all[:7] == [row(number) for number in range(1, 8)]
    assert len(broker.all) <= 20
    relay.close()


def test_an_unexpected_error_neither_ends_the_thread_nor_blocks_later_rows(
    relay: Relay, broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.errors = [TypeError("a bug")]
    with caplog.at_level(logging.ERROR):
        assert not relay.hand_over([row(1)])
    assert "a bug" in caplog.text
    eventually(lambda: not relay.broken, "the breaker closes")
    assert relay.hand_over([row(2)])
    assert broker.all == [row(2)]


def test_the_pause_between_probes_doubles_up_to_the_limit(broker: ScriptedBroker) -> None:
    times: list[float] = []

    def connect() -> ScriptedBroker:
        times.append(time.monotonic())
        raise BrokerUnavailable("Refused.")

    relay = Relay(connect, first_probe=0.05, last_probe=0.2)  # type: ignore[arg-type]
    relay.hand_over([row(1)])
    eventually(lambda: len(times) >= 8, "eight probes")
    relay.close()
    pauses = [after - before for before, after in itertools.pairwise(times)]
    for pause, least in zip(pauses, [0.05, 0.1, 0.2, 0.2, 0.2], strict=False):
        assert least <= pause
    assert min(pauses[3:]) < 0.4, "without a limit they would be 0.4 s and more"


def test_a_lost_broker_is_reconnected() -> None:
    first, second = ScriptedBroker(), ScriptedBroker()
    connects = iter([first, second])
    relay = Relay(lambda: next(connects), wait=10, first_probe=0.02)  # type: ignore[arg-type,return-value]
    assert relay.hand_over([row(1)])
    first.error = BrokerUnavailable("Gone.")
    relay.hand_over([row(2)])
    eventually(lambda: not relay.broken, "the breaker closes")
    assert first.closed.is_set()
    assert second.all == [row(2)]
    relay.close()


def test_handing_over_does_not_probe_sooner(broker: ScriptedBroker) -> None:
    connects = 0

    def connect() -> ScriptedBroker:
        nonlocal connects
        connects += 1
        raise BrokerUnavailable("Refused.")

    relay = Relay(connect, wait=10, first_probe=60)  # type: ignore[arg-type]
    for number in range(1, 20):
        relay.hand_over([row(number)])
    assert connects == 1
    relay.close()


def test_closing_publishes_what_is_queued_and_refuses_more(relay: Relay, broker: ScriptedBroker) -> None:
    assert relay.hand_over([row(1)])
    relay.close()
    assert broker.closed.is_set()
    assert not relay.hand_over([row(2)])
    with pytest.raises(BrokerUnavailable, match="closed"):
        relay.publish_direct(direct(), 1)


def test_closing_during_an_outage_is_prompt(broker: ScriptedBroker) -> None:
    relay = Relay(lambda: broker, wait=10, first_probe=60)  # type: ignore[arg-type,return-value]
    broker.error = BrokerUnavailable("Refused.")
    relay.hand_over([row(1)])
    started = time.monotonic()
    relay.close(30)
    assert time.monotonic() - started < 10


def test_a_forked_child_has_a_relay_of_its_own(relay: Relay, broker: ScriptedBroker) -> None:
    assert relay.hand_over([row(1)])
    with relay._state.changed:  # as if another thread held it at the moment of the fork
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if relay.hand_over([row(2)]) and broker.all[-1] == row(2) else 2
            finally:
                os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert relay.hand_over([row(3)])
