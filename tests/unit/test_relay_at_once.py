"""A caller publishes itself while nothing fails; the thread does everything else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import UUID

import pytest

from sidestream.broker.protocol import Publication
from sidestream.errors import BrokerFull, BrokerUnavailable
from sidestream.relay.relay import AT_ONCE_BYTES, AT_ONCE_MOST, Relay
from tests.unit.relay_parts import UUID_1, QuickBroker, direct, eventually, row


@pytest.fixture
def broker() -> QuickBroker:
    return QuickBroker()


@pytest.fixture
def relay(broker: QuickBroker) -> Iterator[Relay]:
    relay = Relay(lambda: broker, wait=10, first_probe=0.02, last_probe=0.04)  # type: ignore[arg-type,return-value]
    assert relay.hand_over([row(1)])  # connected by the thread
    yield relay
    if broker.hang is not None:
        broker.hang.set()
    relay.close()


def test_the_thread_connects_and_callers_publish(relay: Relay, broker: QuickBroker) -> None:
    assert broker.all == [row(1)]
    assert broker.readied == 1
    assert relay.hand_over([row(2), row(3)])
    relay.publish_direct(direct(), 30)
    me = threading.current_thread().name
    assert broker.at_once == [(me, [row(2), row(3)]), (me, [direct()])]
    assert broker.all == [row(1)]


def test_only_the_thread_reopens_a_closed_connection(relay: Relay, broker: QuickBroker) -> None:
    broker.quick = False
    assert relay.hand_over([row(2)])
    relay.publish_direct(direct(), 30)
    assert broker.all == [row(1), row(2), direct()]
    assert broker.readied == 3
    assert not relay.broken


def test_a_timeout_opens_the_breaker_and_the_rows_are_kept(relay: Relay, broker: QuickBroker) -> None:
    broker.quick = BrokerUnavailable("silent")
    broker.error = BrokerUnavailable("silent")
    assert not relay.hand_over([row(2)])
    assert relay.broken
    assert not relay.hand_over([row(3)])  # does not ask again
    assert len(broker.at_once) == 1
    broker.error = None
    eventually(lambda: not relay.broken, "the breaker closes")
    assert broker.all == [row(1), row(2), row(3)]


def test_a_timeout_of_a_direct_job_leaves_its_state_unknown(relay: Relay, broker: QuickBroker) -> None:
    broker.quick = BrokerUnavailable("silent")
    broker.error = BrokerUnavailable("silent")
    with pytest.raises(BrokerUnavailable, match=f"^silent The job may have been enqueued.*{UUID_1}"):
        relay.publish_direct(direct(), 30)
    assert relay.broken
    with pytest.raises(BrokerUnavailable, match="was not enqueued"):
        relay.publish_direct(direct(), 30)


def test_the_thread_reports_a_refusal(relay: Relay, broker: QuickBroker) -> None:
    broker.quick = BrokerFull("full")
    broker.error = BrokerFull("full")
    with pytest.raises(BrokerFull, match="was not enqueued"):
        relay.publish_direct(direct(), 30)


@pytest.mark.parametrize(
    "many",
    [
        [row(number) for number in range(2, AT_ONCE_MOST + 3)],
        [Publication(direct().reference, "lane", 0, b"x" * AT_ONCE_BYTES)],
    ],
    ids=["jobs", "bytes"],
)
def test_publications_larger_than_a_socket_buffer_go_through_the_thread(
    relay: Relay, broker: QuickBroker, many: list[Publication]
) -> None:
    assert relay.hand_over(many)
    assert not broker.at_once
    assert broker.all == [row(1), *many]


def test_while_one_caller_publishes_others_go_through_the_thread(relay: Relay, broker: QuickBroker) -> None:
    broker.hang = threading.Event()
    first = threading.Thread(target=relay.hand_over, args=([row(2)],), name="first")
    first.start()
    eventually(lambda: broker.at_once, "the first one publishes")
    second = threading.Thread(target=relay.hand_over, args=([row(3)],), name="second")
    second.start()
    eventually(lambda: relay.kept == 1, "the second one waits for the thread")
    broker.hang.set()
    first.join(30)
    second.join(30)
    assert broker.at_once == [("first", [row(2)])]
    assert broker.all == [row(1), row(3)]


def test_a_caller_that_is_interrupted_leaves_the_relay_usable(relay: Relay, broker: QuickBroker) -> None:
    broker.quick = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        relay.hand_over([row(2)])
    broker.quick = True
    assert relay.hand_over([row(3)])
    assert [jobs for _, jobs in broker.at_once] == [[row(2)], [row(3)]]


def test_closing_waits_for_a_caller_that_publishes(relay: Relay, broker: QuickBroker) -> None:
    broker.hang = threading.Event()
    caller = threading.Thread(target=relay.hand_over, args=([row(2)],))
    caller.start()
    eventually(lambda: broker.at_once, "the caller publishes")
    closing = threading.Thread(target=relay.close, args=(30,))
    closing.start()
    assert not broker.closed.wait(0.05)
    broker.hang.set()
    assert broker.closed.wait(30)
    caller.join(30)
    closing.join(30)


def test_a_breaker_that_another_caller_has_opened_closes_again(relay: Relay, broker: QuickBroker) -> None:
    broker.hang = threading.Event()
    first = threading.Thread(target=relay.publish_direct, args=(direct(), 30))
    first.start()
    eventually(lambda: broker.at_once, "the first one publishes")
    with pytest.raises(BrokerUnavailable, match="was not enqueued"):
        relay.publish_direct(direct(UUID(int=2)), 0.05)
    assert relay.broken
    broker.hang.set()
    first.join(30)
    eventually(lambda: not relay.broken, "the thread asks the broker")


def test_an_unexpected_error_is_not_raised_to_the_caller(relay: Relay, broker: QuickBroker) -> None:
    broker.quick = ZeroDivisionError()
    assert relay.hand_over([row(2)]), "the thread did it"
    assert broker.all == [row(1), row(2)]


def test_without_a_second_connection_only_the_thread_publishes(broker: QuickBroker) -> None:
    broker.ready_error = BrokerUnavailable("max number of clients reached")
    broker.quick = False
    relay = Relay(lambda: broker, wait=10)  # type: ignore[arg-type,return-value]
    assert relay.hand_over([row(1)])
    assert relay.hand_over([row(2)])
    assert not relay.broken
    relay.close()
