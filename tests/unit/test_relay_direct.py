"""Direct jobs through the relay: each caller learns whether its job was enqueued."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from uuid import UUID

import pytest

from sidestream.errors import BrokerError, BrokerFull, BrokerUnavailable, BrokerUnsuitable, CapabilityMissing
from sidestream.relay.relay import Relay
from tests.unit.relay_parts import UUID_1, ScriptedBroker, direct, eventually, row


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


def test_a_direct_job_is_published(relay: Relay, broker: ScriptedBroker) -> None:
    relay.publish_direct(direct(), 30)
    assert broker.all == [direct()]


def test_a_direct_job_fails_at_once_while_the_breaker_is_open(broker: ScriptedBroker) -> None:
    broker.hang = threading.Event()
    relay = Relay(lambda: broker, wait=0.05)  # type: ignore[arg-type,return-value]
    relay.hand_over([row(1)])
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="was not enqueued") as caught:
        relay.publish_direct(direct(), 30)
    assert time.monotonic() - started < 10
    assert str(UUID_1) in str(caught.value)
    broker.hang.set()
    relay.close()


def test_a_direct_job_that_hangs_may_have_been_enqueued(relay: Relay, broker: ScriptedBroker) -> None:
    broker.hang = threading.Event()
    with pytest.raises(BrokerUnavailable, match=r"may have been enqueued.*id=00000000-0000-0000-0000-000000000001"):
        relay.publish_direct(direct(), 1.0)  # the thread has so long to take it
    assert relay.broken


def test_a_direct_job_that_was_never_sent_was_not_enqueued(relay: Relay, broker: ScriptedBroker) -> None:
    broker.hang = threading.Event()
    errors: list[BrokerError] = []

    def call(uuid: UUID, timeout: float) -> None:
        try:
            relay.publish_direct(direct(uuid), timeout)
        except BrokerError as error:
            errors.append(error)

    first = threading.Thread(target=call, args=(UUID(int=1), 30.0))
    first.start()
    eventually(lambda: relay._state.thread is not None and not relay._state.direct, "the first is being sent")
    call(UUID(int=2), 0.1)
    [error] = errors
    assert "was not enqueued" in str(error)
    broker.hang.set()
    first.join()
    eventually(lambda: not relay.broken, "the breaker closes")
    assert broker.all == [direct(UUID(int=1))]


@pytest.mark.parametrize("error", [BrokerFull("Full."), BrokerUnsuitable("Read-only.")])
def test_a_direct_job_that_was_refused_was_not_enqueued(
    relay: Relay, broker: ScriptedBroker, error: BrokerError
) -> None:
    broker.error = None
    broker.errors = [error]
    with pytest.raises(type(error), match="was not enqueued"):
        relay.publish_direct(direct(), 30)


def test_a_broker_without_direct_jobs_reports_it_and_continues(relay: Relay, broker: ScriptedBroker) -> None:
    broker.errors = [CapabilityMissing("Not over PostgreSQL.")]
    with pytest.raises(CapabilityMissing, match=r"Not over PostgreSQL.*was not enqueued"):
        relay.publish_direct(direct(), 30)
    assert not relay.broken
    assert relay.hand_over([row(1)])


def test_queued_direct_jobs_fail_when_the_broker_fails(relay: Relay, broker: ScriptedBroker) -> None:
    broker.hang = threading.Event()
    errors: list[str] = []

    def call(number: int) -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            relay.publish_direct(direct(UUID(int=number)), 30)
        errors.append(str(caught.value))

    first = threading.Thread(target=call, args=(1,))
    first.start()
    eventually(lambda: relay._state.thread is not None and not relay._state.direct, "the first is being sent")
    second = threading.Thread(target=call, args=(2,))
    second.start()
    eventually(lambda: relay._state.direct, "the second stands in line")
    broker.error = BrokerUnavailable("Reset.")
    broker.hang.set()
    first.join()
    second.join()
    assert sorted("may have" in error for error in errors) == [False, True]
