"""The lease thread announces actions before it claims, and continues during an outage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sidestream.broker.failover import FailoverBroker
from sidestream.broker.memory import MemoryBroker
from sidestream.broker.protocol import Broker, Delivery, Lease
from sidestream.clock import SystemClock
from sidestream.errors import BrokerUnavailable, StaleGeneration
from sidestream.executors.protocol import ActionFacts
from sidestream.job.reference import row_reference
from sidestream.job.retry import RetryPolicy
from sidestream.worker import lease
from sidestream.worker.lease import LeaseRenewer
from sidestream.worker.options import WorkerOptions
from sidestream.worker.slots import Slots
from sidestream.worker.state import ChildState, WorkerState

TAG = b"abcd"


class Clock:
    """Replaces the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Away(MemoryBroker):
    """Emptied first, and then gone."""

    def announce(self, *_: Any, **__: Any) -> None:
        raise StaleGeneration

    def generation(self, databases: Any = ()) -> Any:
        raise BrokerUnavailable


def renewer_of(broker: Broker, folder: Path) -> tuple[LeaseRenewer, WorkerState]:
    state = WorkerState(WorkerOptions("me", ("00" * 8 + ":default",), folder))
    state.actions = {TAG: ActionFacts("a", TAG, None, RetryPolicy())}
    state.announced = False
    slots, descriptor = Slots.create(folder / "slots", 1)
    os.close(descriptor)
    pool: Any = None  # only asked to kill
    return LeaseRenewer(state, broker, pool, slots), state


def test_announced_actions_may_be_claimed(tmp_path: Path) -> None:
    broker = MemoryBroker()
    broker.begin_generation()
    task, state = renewer_of(broker, tmp_path)
    task._renew()
    assert state.announced


@pytest.mark.parametrize("looks", [1, 2])
def test_a_broker_that_fails_before_the_announcement_does_not_stop_the_worker(tmp_path: Path, looks: int) -> None:
    task, state = renewer_of(Away(), tmp_path)
    for _ in range(looks):
        task._renew()
    assert state.announced == (looks == 2)  # emptied: state what we hold; gone: go on without it


def test_actions_learned_during_an_outage_are_announced_to_the_fallback(tmp_path: Path) -> None:
    told: list[frozenset[bytes] | None] = []

    class Rows(MemoryBroker):
        def announce(self, *words: Any, **_: Any) -> None:
            told.append(words[-1])

        def count_others(self, held: object) -> None: ...

    task, state = renewer_of(FailoverBroker(Away(), Rows(), SystemClock()), tmp_path)
    known, state.actions = state.actions, {}
    task._renew()  # before the zygote said what it knows, and to a broker that was emptied
    task._renew()
    state.actions = known
    task._renew()
    assert told[-1] == frozenset([TAG])


def test_the_lease_of_a_job_that_ended_is_renewed_for_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, state = renewer_of(MemoryBroker(), tmp_path)
    clock = Clock()
    monkeypatch.setattr(lease, "time", clock)
    jobs = [
        Delivery(row_reference(b"12345678", number, "a", None).pack(), "lane", Lease(b"%d" % number, "me", 1), 0)
        for number in range(4)
    ]
    state.add_held(jobs)
    runs, waits, accused, ended = jobs
    state.children[0] = ChildState(0, None, pid=1, deliveries=[ended, runs], reported=1)  # type: ignore[arg-type]
    state.backlog.append(waits)
    state.alone.append(accused)
    with state.lock:
        assert task._kept() == jobs, "its outcome is being written"
        clock.now += lease.UNWRITTEN + 1
        assert task._kept() == [runs, waits, accused], "another worker may have a way to write it"
        state.backlog.append(ended)
        assert task._kept() == jobs, "it is run here after all"
