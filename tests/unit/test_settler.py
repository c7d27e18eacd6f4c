"""What the settler writes, and in which order, while one of the servers is unavailable."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidestream.broker.protocol import FALLBACK_PREFIX, Delivery, Lease, from_fallback
from sidestream.errors import BrokerUnavailable, StoreUnavailable
from sidestream.job.outcome import Release, Retry
from sidestream.job.reference import row_reference
from sidestream.worker import wire
from sidestream.worker.options import WorkerOptions
from sidestream.worker.outcome_writer import RowBusy
from sidestream.worker.settlement import Settlement
from sidestream.worker.settler import AGAIN_AFTER, Settler
from sidestream.worker.state import ChildState, WorkerState

FAILED = wire.JobReport(0, Retry(0.0, "no stock"), 0)


def delivery(number: int, *, fallback: bool = False) -> Delivery:
    """Return a delivery of row ``number``, from Redis or from PostgreSQL."""
    entry = b"%s%d" % (FALLBACK_PREFIX if fallback else b"", number)
    return Delivery(row_reference(b"12345678", number, "act", None).pack(), "lane", Lease(entry, "me", 1), 0)


class Redis:
    """A broker whose own leases cannot be settled during its outage; those of the fallback can."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.released: list[Delivery] = []
        self.settled: list[Delivery] = []

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        self.asked += 1
        if self.away and not all(map(from_fallback, deliveries)):
            raise BrokerUnavailable("away")
        self.settled += deliveries
        return []

    def release(self, delivery: Delivery, release: Release) -> int:
        self.asked += 1
        if self.away and not from_fallback(delivery):
            raise BrokerUnavailable("away")
        self.released.append(delivery)
        return 0


class Books:
    """Decides at once, except for what is busy."""

    def __init__(self) -> None:
        self.decided: list[Delivery] = []
        self.busy: set[bytes] = set()
        self.suspects: set[bytes] = set()
        self.away: set[bytes] = set()

    def reported(self, delivery: Delivery, job_report: wire.JobReport) -> Settlement:
        if delivery.reference in self.busy:
            raise RowBusy
        if delivery.reference in self.away:
            raise StoreUnavailable("away")
        self.decided.append(delivery)
        if delivery.reference in self.suspects:
            return Settlement(run_alone=True)
        return Settlement(release=Release(charge_attempt=True, count=False))

    def not_started(self, delivery: Delivery) -> Settlement:
        return Settlement()

    def started(self, delivery: Delivery, slot: int, seconds: float) -> None:
        self.decided.append(delivery)


class Desk:
    """A settler at work in its thread."""

    def __init__(self, folder: Path) -> None:
        self.state = WorkerState(WorkerOptions("me", ("lane",), folder, children=1))
        self.redis, self.outcome_writer = Redis(), Books()
        self.sent: list[Delivery] = []
        self.settler = Settler(
            self.state,
            self.redis,  # type: ignore[arg-type]
            self.outcome_writer,  # type: ignore[arg-type]
            send_alone=lambda delivery, child: self.sent.append(delivery),
            on_stale_generation=lambda: None,
        )

    def fails(self, delivery: Delivery) -> None:
        """A child says that this one, which we hold, failed."""
        with self.state.lock:
            self.state.add_held([delivery])
        self.settler.job_report(delivery, FAILED)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write in a thread."""
        thread = threading.Thread(target=self.settler.run)
        thread.start()
        try:
            yield
        finally:
            self.settler.stop()
            thread.join(10)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def until(seen: Callable[[], object]) -> None:
    """Wait for ``seen``."""
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_a_settlement_that_redis_refuses_does_not_delay_others(desk: Desk) -> None:
    """Jobs from PostgreSQL go on failing, starting alone and being released while Redis is away."""
    untold, released = delivery(1), delivery(2)
    failed, alone = delivery(3, fallback=True), delivery(4, fallback=True)
    desk.redis.away = True
    with desk.open():
        desk.fails(untold)
        desk.settler.release([released])
        until(lambda: desk.redis.asked >= 2)
        desk.fails(failed)
        desk.settler.prepare_alone(alone, ChildState(0, None))  # type: ignore[arg-type]
        until(lambda: desk.sent == [alone])
        assert desk.outcome_writer.decided == [untold, failed, alone]
        assert desk.redis.released == [failed]
        desk.redis.away = False
        until(lambda: len(desk.redis.released) == 3)
    assert desk.redis.released == [failed, untold, released]
    assert desk.outcome_writer.decided == [untold, failed, alone], "what was decided is not decided again"
    assert not desk.state.held


@pytest.mark.parametrize("end", ["failed", "done"])
def test_new_settlements_do_not_shorten_the_retry_interval(desk: Desk, end: str) -> None:
    desk.redis.away = True
    with desk.open():
        if end == "failed":
            desk.fails(delivery(1))
        else:
            desk.settler.done([delivery(1)])
        until(lambda: desk.redis.asked)
        began = time.monotonic()
        for number in range(100):
            desk.settler.started(delivery(2), 0, 1.0)
            until(lambda count=number + 1: desk.outcome_writer.decided.count(delivery(2)) == count)  # type: ignore[misc]
        tries = 2 + (time.monotonic() - began) / AGAIN_AFTER
        assert desk.redis.asked <= tries
        desk.redis.away = False
        until(lambda: desk.redis.settled or desk.redis.released)


def test_a_last_retry_is_made_at_the_stop(desk: Desk) -> None:
    desk.redis.away = True
    with desk.open():
        desk.fails(delivery(1))
        until(lambda: desk.redis.asked >= 2)
        desk.redis.away = False
    assert desk.redis.released == [delivery(1)]


def test_settlements_of_one_lease_are_written_in_order(desk: Desk) -> None:
    job, other = delivery(1), delivery(2)
    desk.outcome_writer.busy = {job.reference}
    with desk.open():
        desk.fails(job)
        desk.settler.release([job])
        desk.fails(other)
        until(lambda: desk.redis.released)
        assert desk.redis.released == [other]
        desk.outcome_writer.busy = set()
        until(lambda: len(desk.redis.released) == 3)
    assert desk.redis.released == [other, job, job]
    assert desk.outcome_writer.decided == [other, job]


def test_settling_in_redis_keeps_a_newer_lease_from_postgresql(desk: Desk) -> None:
    old, new = delivery(1), delivery(1, fallback=True)
    desk.redis.away = True
    with desk.open():
        desk.fails(old)
        until(lambda: desk.redis.asked)
        with desk.state.lock:
            desk.state.add_held([new])
        desk.redis.away = False
        until(lambda: desk.redis.released)
        assert desk.redis.released == [old]
        assert desk.state.held == {new.reference: new}
        # It is settled although the settlement of the first lease still waits.
        desk.redis.away = True
        desk.settler.release([old])
        until(lambda: desk.redis.asked >= 3)
        desk.settler.job_report(new, FAILED)
        until(lambda: desk.redis.released == [old, new])
    assert not desk.state.held


def test_a_draining_worker_releases_a_job_that_has_to_run_alone(desk: Desk) -> None:
    job = delivery(1)
    desk.outcome_writer.suspects = {job.reference}
    desk.state.draining = True
    with desk.open():
        desk.fails(job)
    assert desk.redis.released == [job]
    assert not desk.state.alone
    assert not desk.state.held


def test_releases_of_the_last_writes_are_settled_before_the_end(desk: Desk) -> None:
    """A lone start whose row is written at last, when its child is gone already."""
    job = delivery(1)
    desk.settler._send_alone = lambda delivery, child: desk.settler.release([delivery])
    desk.settler.prepare_alone(job, ChildState(0, None))  # type: ignore[arg-type]
    desk.settler.stop()
    desk.settler.run()
    assert desk.redis.released == [job]


def test_an_outcome_that_postgresql_refuses_delays_no_other_and_no_row_is_claimed(desk: Desk) -> None:
    stuck, other = delivery(1), delivery(2)
    desk.outcome_writer.away = {stuck.reference}
    with desk.open():
        desk.fails(stuck)
        desk.settler.release([other])
        until(lambda: desk.redis.released == [other])
        until(lambda: desk.state.unwritten)
        desk.outcome_writer.away = set()
        until(lambda: desk.redis.released == [other, stuck])
        until(lambda: not desk.state.unwritten)


def test_a_session_that_is_ending_is_waited_for_at_the_stop(desk: Desk) -> None:
    job = delivery(1)
    desk.outcome_writer.busy = {job.reference}
    asked = threading.Event()
    found = desk.outcome_writer.reported

    def ask(*about: Any) -> Settlement:
        asked.set()
        return found(*about)

    desk.outcome_writer.reported = ask  # type: ignore[method-assign]
    with desk.open():
        desk.fails(job)
        assert asked.wait(10)
        desk.settler.stop()
        asked.clear()
        assert asked.wait(10), "it is tried again"
        desk.outcome_writer.busy = set()
        until(lambda: desk.redis.released == [job])
