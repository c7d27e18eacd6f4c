"""What is handed out, to whom, and what happens when the child is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream.broker.memory import MemoryBroker
from sidestream.broker.protocol import Delivery, Lease
from sidestream.job.reference import action_of, row_reference
from sidestream.worker import wire
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.options import WorkerOptions
from sidestream.worker.slots import Slots
from sidestream.worker.state import ChildState, WorkerState


def delivery(number: int, key: str | None = None, action: str = "act") -> Delivery:
    """Return a delivery of row ``number``."""
    return Delivery(row_reference(b"12345678", number, action, key).pack(), "lane", Lease(b"1", "me", 1), 0)


class Floor:
    """A state with children that are only sockets, and the dispatcher over it."""

    def __init__(self, folder: Path, children: int = 2) -> None:
        self.state = WorkerState(WorkerOptions("me", ("lane",), "00", folder, children=children))
        slots, descriptor = Slots.create(folder / "slots", children)
        os.close(descriptor)
        self.prepared: list[tuple[Delivery, ChildState]] = []
        self.handed_back: list[Delivery] = []
        self.dispatcher = Dispatcher(
            self.state,
            MemoryBroker(),
            slots,
            prepare_alone=lambda job, child: self.prepared.append((job, child)),
            hand_back=lambda jobs: self.handed_back.extend(jobs),
            on_moved=lambda: None,
        )
        self.far = []
        for slot in range(children):
            ours, theirs = wire.pair()
            self.far.append(theirs)
            self.state.children[slot] = ChildState(slot, ours, pid=1000 + slot)

    def sent(self, slot: int) -> list[bytes]:
        """Return the references of the batch that the child in ``slot`` was sent."""
        return [item.reference for item in wire.read_batch(wire.receive(self.far[slot])).items]

    def close(self) -> None:
        """Close the sockets."""
        for end in [*self.far, *(child.end for child in self.state.children.values())]:
            end.close()


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    """Two idle children."""
    floor = Floor(tmp_path)
    yield floor
    floor.close()


def test_unmeasured_jobs_travel_alone(floor: Floor) -> None:
    jobs = [delivery(number) for number in range(3)]
    floor.state.backlog.extend(jobs)
    floor.dispatcher.hand_out()
    assert sorted(floor.sent(0) + floor.sent(1)) == [jobs[0].reference, jobs[1].reference]
    assert list(floor.state.backlog) == [jobs[2]]


def test_cheap_jobs_travel_together_and_are_shared_evenly(floor: Floor) -> None:
    jobs = [delivery(number) for number in range(10)]
    floor.state.measured({action_of(jobs[0].reference): (100, 1000)})
    floor.state.backlog.extend(jobs)
    floor.dispatcher.hand_out()
    assert (len(floor.sent(0)), len(floor.sent(1))) == (5, 5)


def test_a_batch_ends_where_its_measured_work_does(floor: Floor) -> None:
    jobs = [delivery(number) for number in range(20)]
    floor.state.measured({action_of(jobs[0].reference): (10, 40_000)})  # 4 ms each; a batch is 10 ms
    floor.state.backlog.extend(jobs)
    floor.dispatcher.hand_out()
    assert (len(floor.sent(0)), len(floor.sent(1))) == (2, 2)


def test_a_keyed_job_travels_alone(floor: Floor) -> None:
    jobs = [delivery(1, "k"), delivery(2), delivery(3)]
    floor.state.measured({action_of(jobs[0].reference): (100, 1000)})
    floor.state.backlog.extend(jobs)
    floor.dispatcher.hand_out()
    assert sorted([len(floor.sent(0)), len(floor.sent(1))]) == [1, 2]


def test_a_lone_job_waits_until_nobody_else_runs_and_keeps_others_waiting(floor: Floor) -> None:
    lone, other = delivery(1), delivery(2)
    busy = floor.state.children[0]
    busy.deliveries = [delivery(9)]
    floor.state.alone.append(lone)
    floor.state.backlog.append(other)
    floor.dispatcher.hand_out()
    assert floor.prepared == []
    busy.deliveries = []
    floor.dispatcher.hand_out()
    [(job, child)] = floor.prepared
    assert job == lone
    floor.dispatcher.send_alone(job, child)
    floor.dispatcher.hand_out()
    assert floor.sent(child.slot) == [lone.reference]
    assert list(floor.state.backlog) == [other]
    assert child.recorded == (child.batch, 0), "another attempt row would hide that it runs alone"


def test_a_lone_job_whose_child_died_meanwhile_goes_to_another(floor: Floor) -> None:
    """PostgreSQL was away while its attempt row was to be written, and the child did not live to see it back."""
    lone = delivery(1)
    floor.state.alone.append(lone)
    floor.dispatcher.hand_out()
    [(job, child)] = floor.prepared
    child.ended = True
    floor.dispatcher.send_alone(job, child)
    assert list(floor.state.alone) == [lone]
    assert floor.state.exclusive is None
    floor.dispatcher.hand_out()
    assert floor.prepared[-1][0] == lone
    assert floor.prepared[-1][1] is not child


@pytest.mark.parametrize("leaving", ["draining", "quiet"])
def test_a_lone_job_whose_row_was_written_while_the_worker_left_is_handed_back(floor: Floor, leaving: str) -> None:
    lone = delivery(1)
    floor.state.alone.append(lone)
    floor.dispatcher.hand_out()
    [(job, child)] = floor.prepared
    setattr(floor.state, leaving, True)
    floor.dispatcher.send_alone(job, child)
    assert floor.handed_back == [lone]
    assert (child.deliveries, list(floor.state.alone), floor.state.exclusive) == ([], [], None)


def test_nothing_is_handed_out_while_draining(floor: Floor) -> None:
    floor.state.draining = True
    floor.state.backlog.append(delivery(1))
    floor.dispatcher.hand_out()
    assert len(floor.state.backlog) == 1


def test_a_quiet_worker_gives_back_what_waits_and_keeps_what_runs(floor: Floor) -> None:
    running = delivery(9)
    floor.state.children[0].deliveries = [running]
    floor.state.backlog.append(delivery(1))
    floor.state.alone.append(delivery(2))
    floor.state.quiet = True
    floor.dispatcher.hand_out()
    assert floor.handed_back == [delivery(1), delivery(2)]
    assert floor.state.children[0].deliveries == [running]
    assert not floor.state.backlog
    assert not floor.state.alone
