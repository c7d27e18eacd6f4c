"""When the claiming thread wakes, and what it claims."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sidestream.broker.protocol import Delivery, Lease
from sidestream.job.reference import direct_reference, row_reference
from sidestream.worker import dispatcher
from sidestream.worker import state as state_module
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.options import WorkerOptions
from sidestream.worker.slots import Slots
from sidestream.worker.state import ALONE_MOST, END_OTHERS, ChildState, Lone, WorkerState

PATIENCE = 20.0
CHEAP = 0.1 * 2 / 100
"""A job so cheap that the two children of a floor may have a hundred of it claimed in advance."""


def delivery(number: int) -> Delivery:
    return Delivery(row_reference(b"12345678", number, "act", None).pack(), "lane", Lease(b"%d" % number, "me", 1), 0)


class Claims:
    """A broker that notes what it is asked for, and has nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.heard = threading.Event()

    def claim(self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int, wait_ms: int) -> list[Delivery]:
        self.asked.append((free, prefetch))
        self.heard.set()
        return []


class Floor:
    """A dispatcher with two children that are busy, and jobs in its backlog."""

    def __init__(self, folder: Path) -> None:
        self.state = state = WorkerState(WorkerOptions("me", ("lane",), folder, children=2))
        self.claims = Claims()
        self.released: list[Delivery] = []
        self.lone: list[Delivery] = []
        self.ended: list[Lone] = []
        self.slots, self.descriptor = Slots.create(folder / "slots", 2)
        self.dispatcher = Dispatcher(
            state,
            self.claims,  # type: ignore[arg-type]
            self.slots,
            prepare_alone=lambda job, child: self.lone.append(job),
            end_alone=self.ended.append,
            release=lambda jobs: self.released.extend(jobs),
            on_stale_generation=lambda: None,
        )
        self.ends = []
        for slot in range(2):
            end, other = socket.socketpair()
            self.ends += [end, other]
            state.children[slot] = ChildState(slot, end, pid=1, deliveries=[delivery(slot)])
        state.pace = CHEAP
        state.backlog.extend(delivery(number) for number in range(10, 110))  # all that may be held

    def close(self) -> None:
        for end in self.ends:
            end.close()
        os.close(self.descriptor)

    def idle(self, slot: int = 0) -> None:
        self.state.children[slot].deliveries = []


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    made = Floor(tmp_path)
    yield made
    made.close()


def drained_to(jobs: int) -> Callable[[Floor], None]:
    def drain(floor: Floor) -> None:
        while len(floor.state.backlog) > jobs:
            floor.state.backlog.pop()

    return drain


def idle_with(**state: Any) -> Callable[[Floor], None]:
    """One child has nothing to do and the backlog is empty, but there is something about the worker."""

    def change(floor: Floor) -> None:
        floor.idle()
        floor.state.backlog.clear()
        for name, value in state.items():
            setattr(floor.state, name, value)

    return change


def with_a_lone_job(floor: Floor) -> None:
    idle_with()(floor)
    floor.state.alone.append(delivery(5))


def with_a_lone_job_that_waits(**state: Any) -> Callable[[Floor], None]:
    def change(floor: Floor) -> None:
        with_a_lone_job(floor)
        for name, value in {"rest_until": time.monotonic() + PATIENCE, **state}.items():
            setattr(floor.state, name, value)

    return change


def nobody_runs(floor: Floor) -> None:
    floor.idle(1)
    idle_with(recovery_until=time.monotonic() + PATIENCE)(floor)


@pytest.mark.parametrize(
    ("happens", "wanted"),
    [
        pytest.param(lambda floor: None, None, id="all are busy and the backlog is full"),
        pytest.param(idle_with(), (1, 100), id="one is idle"),
        pytest.param(drained_to(37), None, id="room for 63"),
        pytest.param(drained_to(36), (0, 64), id="room for 64"),
        pytest.param(
            lambda floor: (drained_to(36)(floor), setattr(floor.state, "last_fetch_short", True)),
            None,
            id="none are left",
        ),
        pytest.param(idle_with(quiet=True), None, id="quiet"),
        pytest.param(idle_with(announced=False), None, id="not announced yet"),
        pytest.param(with_a_lone_job, None, id="one waits to run alone"),
        pytest.param(idle_with(exclusive=object()), None, id="one runs alone"),
        pytest.param(idle_with(recovery_until=time.monotonic() + 3600), (1, 0), id="run_alone while another runs"),
        pytest.param(nobody_runs, (1, 0), id="run_alone while none runs"),
        pytest.param(with_a_lone_job_that_waits(), (1, 100), id="others were held up just before"),
        pytest.param(with_a_lone_job_that_waits(rest_until=0.0, accused=object()), (1, 100), id="one runs, others may"),
    ],
)
def test_it_wakes_when_there_is_room_to_claim_for(
    floor: Floor, happens: Callable[[Floor], None], wanted: tuple[int, int] | None
) -> None:
    state, woken = floor.state, []
    happens(floor)
    state.changed.notify_all = lambda: woken.append(True)  # type: ignore[method-assign]
    with state.changed:
        assert floor.dispatcher._wanted() == wanted
        floor.dispatcher.wake()
    assert bool(woken) == (wanted is not None)


def test_a_drain_wakes_it(floor: Floor) -> None:
    woken = []
    floor.state.draining = True
    floor.state.changed.notify_all = lambda: woken.append(True)  # type: ignore[method-assign]
    with floor.state.changed:
        floor.dispatcher.wake()
    assert woken


def test_it_claims_immediately_when_room_wakes_it(floor: Floor) -> None:
    """Not only when it looks by itself, half a second later."""
    thread = threading.Thread(target=floor.dispatcher.run)
    thread.start()
    try:
        assert not floor.claims.heard.wait(0.7)  # it looked at least once, and slept again
        with floor.state.changed:
            drained_to(20)(floor)
            began = time.monotonic()
            floor.dispatcher.wake()
        assert floor.claims.heard.wait(PATIENCE)
        assert floor.claims.asked[0] == (0, 80)
        print(f"claimed after {time.monotonic() - began:.4f} s")
    finally:
        with floor.state.changed:
            floor.state.draining = True
            floor.state.changed.notify_all()
        thread.join(PATIENCE)


class Clock:
    """Replaces the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dispatcher, "time", clock)
    monkeypatch.setattr(state_module, "time", clock)
    return clock


def test_a_suspect_blocks_others_for_a_bounded_time_and_then_yields_as_long(floor: Floor, clock: Clock) -> None:
    state = floor.state

    def hand_out() -> None:
        with state.changed:
            floor.dispatcher.hand_out()

    floor.idle()
    state.backlog.clear()
    accused = [delivery(5), delivery(6)]
    state.alone.extend(accused)
    hand_out()
    assert floor.lone == [], "what runs may end first"
    clock.now += END_OTHERS
    hand_out()
    assert floor.lone == accused[:1], "beside what runs longer"
    child = state.children[0]
    floor.dispatcher.send_alone(accused[0], child)
    assert child.deliveries == accused[:1]
    assert floor.dispatcher._wanted() is None
    clock.now += ALONE_MOST
    state.backlog.append(delivery(7))
    hand_out()
    assert state.exclusive is None
    assert floor.ended == [], "it is charged if its host dies"
    floor.idle(1)
    hand_out()
    assert state.children[1].deliveries == [delivery(7)], "others go on beside it"
    child.deliveries = []
    state.lone_ended(child)
    clock.now += END_OTHERS + ALONE_MOST - 1
    hand_out()
    assert floor.lone == accused[:1], "others had no such time for themselves yet"
    clock.now += 1
    hand_out()
    clock.now += END_OTHERS
    hand_out()
    assert floor.lone == accused


def test_after_an_unclean_end_jobs_start_one_at_a_time_and_none_keeps_the_next_one_for_long(
    floor: Floor, clock: Clock
) -> None:
    state = floor.state

    def hand_out() -> None:
        with state.changed:
            floor.dispatcher.hand_out()

    state.recovery_until = clock.now + 60
    floor.idle(0)
    floor.idle(1)
    jobs = [delivery(5), delivery(6), delivery(7)]
    state.backlog.clear()
    state.backlog.extend(jobs)
    hand_out()
    hand_out()
    assert floor.lone == jobs[:1]
    first = state.exclusive
    assert first is not None
    floor.dispatcher.send_alone(jobs[0], first.child)
    clock.now += ALONE_MOST
    hand_out()
    hand_out()
    assert floor.ended == [first], "its row is to say first that it is not alone any more"
    assert floor.lone == jobs[:1]
    state.resume_others()  # it was written
    hand_out()
    assert floor.lone == jobs[:2]
    clock.now = state.recovery_until
    hand_out()
    assert state.exclusive is None, "whatever is not written by then"


def test_while_outcomes_cannot_be_written_only_direct_jobs_are_claimed(floor: Floor) -> None:
    state = floor.state
    direct = Delivery(direct_reference(UUID(int=1), "act", None).pack(), "lane", Lease(b"1", "me", 1), 0)
    rows = [delivery(5), delivery(6)]
    state.backlog.clear()
    state.backlog.extend([rows[0], direct])
    state.alone.append(rows[1])
    state.unwritten = True
    with state.changed:
        floor.dispatcher.hand_out()
    assert floor.released == rows
    assert list(state.backlog) == [direct]
    floor.idle()
    state.backlog.clear()
    assert floor.dispatcher._wanted() is None
    state.options = replace(state.options, lanes=("lane", "00" * 8 + ":default"))
    assert floor.dispatcher._wanted() is not None
    assert floor.dispatcher._lanes() == ["00" * 8 + ":default"]
