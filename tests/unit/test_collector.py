"""The collector hears of one death in two ways, in either order, and acts once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidestream.broker.memory import MemoryBroker
from sidestream.broker.protocol import Delivery, Lease
from sidestream.job.reference import row_reference
from sidestream.worker import wire
from sidestream.worker.collector import Collector
from sidestream.worker.dispatcher import Dispatcher
from sidestream.worker.options import WorkerOptions
from sidestream.worker.pool import ProcessPool
from sidestream.worker.slots import Slots
from sidestream.worker.state import WorkerState

FAKE_ZYGOTE = """
import os, socket, sys, time
import msgpack
control = socket.socket(fileno=int(sys.argv[1]))
control.recv(1 << 16)
control.send(msgpack.packb(("ready", [])))
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


class Recorder:
    """Stands in the settler's place and remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.heard = threading.Event()

    def __getattr__(self, name: str) -> Any:
        def tell(*arguments: Any) -> None:
            self.told.append((name, arguments))
            self.heard.set()

        return tell


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A collector over a zygote whose one child dies of its first batch."""
    state = WorkerState(WorkerOptions("me", ("lane",), "00", tmp_path, children=1))
    slots, descriptor = Slots.create(tmp_path / "slots", 1)
    recorder = Recorder()
    pool = ProcessPool(state, slots, descriptor, [sys.executable, "-c", FAKE_ZYGOTE], b"orders")
    dispatcher = Dispatcher(state, MemoryBroker(), slots, prepare_alone=lambda job, child: None, on_moved=lambda: None)
    collector = Collector(state, pool, slots, dispatcher, recorder, SimpleNamespace(tick=lambda: None))
    yield SimpleNamespace(state=state, pool=pool, slots=slots, recorder=recorder, collector=collector)
    with state.lock:
        pool.stop(1)
    collector.close()
    os.close(descriptor)


def test_a_child_that_dies_with_a_batch_gives_it_back_once(parts: SimpleNamespace) -> None:
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
        wire.send_batch(child.end, wire.Batch(1, [wire.Item(job.reference, None, 0, 0, False)]))
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
