"""The maintenance thread: when tasks run, and what an error does."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sidestream.errors import BrokerUnavailable, StaleGeneration, StoreUnavailable
from sidestream.maintenance.task import MaintenanceTask, MaintenanceThread

PATIENCE = 10.0
IDLE, MORE = False, True


class Told:
    """A task whose steps wait for the test: each takes the next answer from a queue."""

    def __init__(self, name: str = "urgent", every: float = 3600.0) -> None:
        self.name = name
        self.every = every
        self.answers: queue.Queue[bool | Exception] = queue.Queue()
        self.began: queue.Queue[str] = queue.Queue()

    def step(self) -> bool:
        self.began.put(self.name)
        answer = self.answers.get(timeout=PATIENCE)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Counted:
    """A task that only counts its steps."""

    def __init__(self, name: str, every: float, log: list[str], on_step: Callable[[], bool]) -> None:
        self.name = name
        self.every = every
        self.log = log
        self.on_step = on_step

    def step(self) -> bool:
        self.log.append(self.name)
        return self.on_step()


@pytest.fixture(autouse=True)
def no_other_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A test that expects an error takes it out of the log."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@contextmanager
def running(*maintenance: MaintenanceTask) -> Iterator[MaintenanceThread]:
    thread = MaintenanceThread(maintenance)
    thread.start()
    try:
        yield thread
    finally:
        assert thread.stop(PATIENCE)


def test_each_task_runs_at_once_and_then_when_poked() -> None:
    task = Told()
    with running(task) as thread:
        task.answers.put(IDLE)
        assert task.began.get(timeout=PATIENCE) == "urgent"
        thread.poke("urgent")
        task.answers.put(IDLE)
        assert task.began.get(timeout=PATIENCE) == "urgent"


def test_a_poke_during_a_step_is_not_lost() -> None:
    task = Told()
    with running(task) as thread:
        task.began.get(timeout=PATIENCE)
        thread.poke("urgent")
        task.answers.put(IDLE)
        task.began.get(timeout=PATIENCE)
        task.answers.put(IDLE)
    assert task.began.empty()


def test_a_poke_for_an_unknown_task_does_nothing() -> None:
    task = Told()
    with running(task) as thread:
        thread.poke("reconciler")
        task.answers.put(IDLE)
        task.began.get(timeout=PATIENCE)


def test_a_task_with_more_work_runs_again_and_does_not_starve_others() -> None:
    log: list[str] = []
    enough = threading.Event()

    def busy() -> bool:
        if len(log) >= 20:
            enough.set()
        return True

    with running(Counted("busy", 3600.0, log, busy), Counted("other", 1e-9, log, lambda: False)):
        assert enough.wait(PATIENCE)
    assert log.count("busy") >= 8
    assert log.count("other") >= 8


def test_tasks_run_at_their_own_intervals() -> None:
    log: list[str] = []
    enough = threading.Event()

    def fast() -> bool:
        if log.count("fast") == 30:
            enough.set()
        return False

    with running(Counted("fast", 0.001, log, fast), Counted("slow", 3600.0, log, lambda: False)):
        assert enough.wait(PATIENCE)
    assert log.count("slow") == 1


@pytest.mark.parametrize("error", [BrokerUnavailable("Redis does not answer."), StoreUnavailable("No PostgreSQL.")])
def test_an_outage_that_several_tasks_meet_is_logged_once(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    one, two = Told("one"), Told("two")
    with caplog.at_level(logging.INFO), running(one, two) as thread:
        for _ in range(3):
            for task in (one, two):
                task.began.get(timeout=PATIENCE)
                task.answers.put(error)
                thread.poke(task.name)
        for task in (one, two):
            task.began.get(timeout=PATIENCE)
            task.answers.put(IDLE)
    server = "store" if isinstance(error, StoreUnavailable) else "broker"
    assert [record.getMessage() for record in caplog.records] == [
        f"The maintenance task 'one' waits for the {server}: {error}",
        f"Maintenance reaches the {server} again.",
    ]


def test_a_stale_generation_is_not_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    task = Told()
    with caplog.at_level(logging.INFO), running(task):
        task.answers.put(StaleGeneration())
        task.began.get(timeout=PATIENCE)
    assert caplog.records == []


def test_a_bug_in_a_task_is_logged_once_and_the_task_continues(caplog: pytest.LogCaptureFixture) -> None:
    task, bug = Told(), ZeroDivisionError("bug")
    with caplog.at_level(logging.INFO), running(task) as thread:
        for answer in (bug, ZeroDivisionError("bug"), ZeroDivisionError("other"), IDLE, IDLE, bug):
            task.began.get(timeout=PATIENCE)
            thread.poke("urgent")
            task.answers.put(answer)
        task.began.get(timeout=PATIENCE)
        task.answers.put(IDLE)
    records = [*caplog.records]
    caplog.clear()
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is bug
    failed = "The maintenance task 'urgent' failed and is repeated at its usual times: "
    works = "The maintenance task 'urgent' works again."
    assert [record.getMessage() for record in records] == [
        failed + "bug",
        failed + "other",
        works,
        failed + "bug",
        works,
    ]


@pytest.mark.parametrize("every", [0.0, -1.0, math.inf, math.nan])
def test_an_interval_that_is_no_time_is_refused(every: float) -> None:
    said = f"^The maintenance task 'urgent' has every={every}; expected a number of seconds above 0.$"
    with pytest.raises(ValueError, match=said):
        MaintenanceThread([Told(every=every)])


def test_stop_is_bounded_when_a_step_hangs() -> None:
    task = Told()
    thread = MaintenanceThread([task])
    thread.start()
    task.began.get(timeout=PATIENCE)
    assert not thread.stop(timeout=0.01)
    task.answers.put(MORE)
    assert thread.stop(PATIENCE)
    assert task.began.empty(), "no step begins after a stop, not even when more work waits"


def test_stop_before_start_does_nothing() -> None:
    assert MaintenanceThread([Told()]).stop()
