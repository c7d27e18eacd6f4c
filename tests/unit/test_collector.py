"""The collector learns of a death in two ways, in either order, and acts once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidestream.broker.memory import MemoryBroker
from sidestream.broker.protocol import Delivery, Lease
from sidestream.executors.protocol import ActionFacts
from sidestream.job.reference import row_reference
from sidestream.job.retry import RetryPolicy
from sidestream.worker import wire
from sidestream.worker.collector import Collector
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.options import WorkerOptions
from sidestream.worker.pool import ProcessPool
from sidestream.worker.slots import Slots
from sidestream.worker.state import ChildState, KillReason, WorkerState
from sidestream.worker.zygote import facts_to_wire

QUEUES = (("order.print", "pdf"), ("order.ship", "default"), ("invoice.print", "pdf"))
FAKE_ZYGOTE = """
import os, socket, sys, time
import msgpack
control = socket.socket(fileno=int(sys.argv[1]))
control.recv(1 << 16)
control.send(msgpack.packb(("ready",)))
packet, (end,), _, _ = socket.recv_fds(control, 4096, 1)
pid = os.fork()
if pid == 0:
    os.read(end, 1 << 18)  # takes the batch, and dies of it
    os._exit(9)
os.close(end)
control.send(msgpack.packb(("forked", int(packet), pid)))
_, status = os.waitpid(pid, 0)
control.send(msgpack.packb(("exited", pid, status)))
control.recv(1 << 16)
"""


EAGER_ZYGOTE = """
import os, socket, sys
import msgpack
control = socket.socket(fileno=int(sys.argv[1]))
control.recv(1 << 16)
control.send(msgpack.packb(("ready",)))

def fork():
    packet, (end,), _, _ = socket.recv_fds(control, 4096, 1)
    pid = os.fork()
    if pid == 0:
        os.read(end, 1 << 18)  # takes a batch, and dies of it
        os._exit(9)
    os.close(end)
    control.send(msgpack.packb(("forked", int(packet), pid)))
    return pid

first = fork()
fork()  # requested when the first child's end is seen, and done before that end is reported
_, status = os.waitpid(first, 0)
control.send(msgpack.packb(("exited", first, status)))
control.recv(1 << 16)
"""


class Recorder:
    """Replaces the settler and records its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.heard = threading.Event()

    def __getattr__(self, name: str) -> Any:
        def tell(*arguments: Any) -> None:
            self.told.append((name, arguments))
            self.heard.set()

        return tell


@pytest.fixture
def parts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """A collector over a zygote whose children die of their first batch."""
    zygote = getattr(request, "param", FAKE_ZYGOTE)
    state = WorkerState(WorkerOptions("me", ("lane",), tmp_path, children=1))
    slots, descriptor = Slots.create(tmp_path / "slots", 1)
    recorder = Recorder()
    pool = ProcessPool(state, slots, descriptor, [sys.executable, "-c", zygote], b"orders")
    dispatcher = Dispatcher(
        state,
        MemoryBroker(),
        slots,
        prepare_alone=lambda job, child: None,
        end_alone=lambda lone: None,
        release=lambda jobs: None,
        on_stale_generation=lambda: None,
    )
    collector = Collector(state, pool, slots, dispatcher, recorder, SimpleNamespace(tick=lambda: None))
    yield SimpleNamespace(state=state, pool=pool, slots=slots, recorder=recorder, collector=collector)
    with state.lock:
        pool.stop(1)
        for child in list(state.children.values()):
            pool.forget(child)
    collector.close()
    os.close(descriptor)


@contextmanager
def collecting(parts: SimpleNamespace) -> Iterator[ChildState]:
    """Run the collector; give its first child once that is idle."""
    thread = threading.Thread(target=parts.collector.run)
    thread.start()
    try:
        with parts.state.changed:
            assert parts.state.changed.wait_for(lambda: parts.state.idle_children(), 20)
            [child] = parts.state.idle_children()
        yield child
    finally:
        parts.state.stopped = True
        thread.join(20)


def test_queues_that_are_not_served_are_logged_once_the_actions_are_known(
    parts: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    parts.state.options = replace(parts.state.options, lanes=("00:default",))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    facts = [ActionFacts(name, bytes([at] * 4), None, RetryPolicy(), queue) for at, (name, queue) in enumerate(QUEUES)]
    for _ in range(2):  # a restarted zygote with the same actions causes no new log line
        wire.send(theirs, ("actions", [facts_to_wire(one) for one in facts]))
        wire.send(theirs, ("ready",))
        for _message in range(2):
            parts.collector._read_zygote(ours)
    ours.close()
    theirs.close()
    assert [record.getMessage().partition("; their jobs")[0] for record in caplog.records] == [
        "This worker does not serve the queue 'pdf' of invoice.print, order.print"
    ]


def test_the_batch_of_a_dead_child_is_returned_once(parts: SimpleNamespace) -> None:
    job = Delivery(row_reference(b"12345678", 1, "act", None).pack(), "lane", Lease(b"1", "me", 1), 0)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            parts.collector.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with parts.state.changed:
        parts.state.changed.wait_for(lambda: parts.state.idle_children(), 20)
        [child] = parts.state.idle_children()
        parts.slots.assign(child.slot, 1, 1)
        child.batch, child.deliveries = 1, [job]
        parts.state.draining = True  # what comes back stays where it can be seen
        # Both tidings of the death lie in the collector's sockets before it can look at either.
        wire.send_batch(child.end, wire.Batch(1, [wire.Item(job.reference, None, 0, False)]))
        with subprocess.Popen(["sleep", "0.3"]):
            pass
    with parts.state.changed:
        came_back = parts.state.changed.wait_for(lambda: bool(parts.state.backlog) or bool(failed), 20)
        parts.state.stopped = True
    thread.join(20)
    assert came_back
    assert not failed
    assert list(parts.state.backlog) == [job]
    assert parts.recorder.told == []


@pytest.mark.parametrize("parts", [EAGER_ZYGOTE], indirect=True)
def test_a_replacement_child_is_reserved_for_a_suspect_reported_later(
    parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidestream.worker.collector.RECOVERY", 60.0)  # longer than it may take to look
    killed, other = (
        Delivery(row_reference(b"12345678", number, "act", None).pack(), "lane", Lease(b"%d" % number, "me", 1), 0)
        for number in (1, 2)
    )
    state = parts.state
    with collecting(parts) as child:
        with state.changed:
            parts.slots.assign(child.slot, 1, 1)
            parts.slots.start(child.slot, 0, time.monotonic(), killed.reference)
            child.batch, child.deliveries = 1, [killed]
            state.backlog.append(other)
            wire.send_batch(child.end, wire.Batch(1, [wire.Item(killed.reference, None, 0, False)]))
        assert parts.recorder.heard.wait(20)
        with state.lock:
            [(told, (delivery, *_))] = parts.recorder.told
            assert (told, delivery) == ("crashed", killed)
            assert state.children[0].pid not in (0, child.pid), "the next child was to come first"
            assert list(state.backlog) == [other], "another job took the place of the one whose child died"


@pytest.mark.parametrize("parts", [EAGER_ZYGOTE], indirect=True)
@pytest.mark.parametrize(
    ("meant", "charged"), [(0, KillReason.STOPPING), (1, KillReason.LIMIT), (None, KillReason.LIMIT)]
)
def test_a_job_that_began_when_its_child_was_killed_for_another_is_innocent(
    parts: SimpleNamespace, meant: int | None, charged: KillReason
) -> None:
    jobs = [
        Delivery(row_reference(b"12345678", number, "act", None).pack(), "lane", Lease(b"%d" % number, "me", 1), 0)
        for number in (1, 2)
    ]
    state = parts.state
    with collecting(parts) as child:
        with state.changed:
            parts.slots.assign(child.slot, 1, 2)
            parts.slots.start(child.slot, 1, time.monotonic(), jobs[1].reference)
            child.batch, child.deliveries = 1, list(jobs)
            child.kill_reason, child.killed_for = KillReason.LIMIT, None if meant is None else jobs[meant].reference
            wire.send_batch(child.end, wire.Batch(1, [wire.Item(one.reference, None, 0, False) for one in jobs]))
        with state.changed:
            assert state.changed.wait_for(lambda: len(parts.recorder.told) == 2, 20)
            [(first, (done,)), (second, (interrupted, _, _, kill_reason, _))] = parts.recorder.told
        assert (first, done) == ("done", [jobs[0]])
        assert (second, interrupted, kill_reason) == ("crashed", jobs[1], charged)
