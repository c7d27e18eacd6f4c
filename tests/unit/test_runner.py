"""The runner turns every end of a job into exactly one outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from sidestream.errors import LockLost, StoreUnavailable
from sidestream.executors.protocol import Acquired, Conflict, Uncertain
from sidestream.job.outcome import Done, Fail, Outcome, Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.retry import RetryPolicy
from sidestream.worker.runner import CONFLICT_TRIES, Runner
from sidestream.worker.wire import Item


class ScriptedExecutor:
    """An executor whose every step does what the test says."""

    def __init__(self, **steps: Callable[[], Any]) -> None:
        self.steps = steps
        self.calls: list[str] = []
        self.acquired = Acquired("act", 0, None, RetryPolicy(max_attempts=2, first_delay=8, jitter=0), None)
        self.on_backend: Callable[[int], None] = lambda pid: None
        self.on_lock_backend: Callable[[int], None] = lambda pid: None

    def _step(self, name: str, default: Any = None) -> Any:
        self.calls.append(name)
        return self.steps[name]() if name in self.steps else default

    def load(self) -> list[Any]:
        return []

    def begin(self, slot: int) -> None:
        self._step("begin")

    def acquire(self, reference: bytes, payload: bytes | None, *, attempts: int, run_alone: bool) -> Any:
        return self._step("acquire", self.acquired)

    def run(self, acquired: Acquired) -> None:
        self._step("run")

    def commit(self, acquired: Acquired) -> None:
        self._step("commit")

    def verify(self, acquired: Acquired) -> bool:
        return bool(self._step("verify", True))

    def reset(self) -> None:
        self._step("reset")

    def release_locks(self, acquired: Acquired) -> None:
        self._step("release_locks")

    def close(self) -> None:
        self._step("close")


ITEM = Item(b"ref", None, 0, run_alone=False)


def raising(error: BaseException) -> Callable[[], Any]:
    def step() -> None:
        raise error

    return step


def run(executor: ScriptedExecutor) -> Outcome:
    runner = Runner(executor, pause=lambda seconds: None)
    runner.soft_limit.install()
    return runner.run(ITEM, lambda acquired: None)[0]


def test_done_after_run_and_commit() -> None:
    executor = ScriptedExecutor()
    assert run(executor) == Done()
    assert executor.calls == ["acquire", "run", "commit", "release_locks"]


def test_a_verdict_is_the_outcome_and_nothing_runs() -> None:
    executor = ScriptedExecutor(acquire=lambda: Release(Reason(ReasonCode.BLOCKED), None, 3))
    assert run(executor) == Release(Reason(ReasonCode.BLOCKED), None, 3)
    assert executor.calls == ["acquire"]


def test_an_exception_is_retried_by_policy_after_a_rollback() -> None:
    executor = ScriptedExecutor(run=raising(ValueError("no stock")))
    outcome = run(executor)
    assert isinstance(outcome, Retry)
    assert (outcome.delay, outcome.error) == (8, "ValueError: no stock")
    assert executor.calls == ["acquire", "run", "reset", "release_locks"]


def test_the_last_attempt_fails_the_job() -> None:
    executor = ScriptedExecutor(run=raising(ValueError("no")))
    executor.acquired.attempts = 1
    assert isinstance(run(executor), Fail)


@pytest.mark.parametrize("step", ["acquire", "run", "commit"])
def test_conflicts_are_retried_three_times_and_then_released(step: str) -> None:
    executor = ScriptedExecutor(**{step: raising(Conflict("40001"))})
    assert run(executor) == Release(Reason(ReasonCode.CONFLICT), None)
    assert executor.calls.count("acquire") == CONFLICT_TRIES
    assert executor.calls.count("reset") == CONFLICT_TRIES


def test_a_conflict_that_passes_is_no_failure() -> None:
    errors = iter([Conflict("40001")])

    def once() -> None:
        for error in errors:
            raise error

    assert run(ScriptedExecutor(run=once)) == Done()


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), LockLost("not ours")])
def test_a_lost_store_or_lock_charges_no_attempt(error: Exception) -> None:
    assert isinstance(run(ScriptedExecutor(run=raising(error))), Release)


def test_a_lost_commit_reply_is_verified_before_anything_is_decided() -> None:
    executor = ScriptedExecutor(commit=raising(Uncertain("connection lost")))
    assert run(executor) == Done()
    executor = ScriptedExecutor(commit=raising(Uncertain("connection lost")), verify=lambda: False)
    assert isinstance(run(executor), Release)


def test_exiting_the_process_is_a_failed_attempt() -> None:
    outcome = run(ScriptedExecutor(run=raising(SystemExit(3))))
    assert isinstance(outcome, Retry)
    assert outcome.error == "SystemExit: 3"


def test_the_soft_limit_is_raised_inside_the_action() -> None:
    executor = ScriptedExecutor(run=lambda: time.sleep(30))
    executor.acquired.soft_limit = 0.05
    outcome = run(executor)
    assert isinstance(outcome, Retry)
    assert outcome.error == "It ran longer than its soft limit of 0.05 s."


def test_the_soft_limit_does_not_reach_the_next_job() -> None:
    executor = ScriptedExecutor()
    executor.acquired.soft_limit = 0.02
    runner = Runner(executor)
    runner.soft_limit.install()
    runner.run(ITEM, lambda acquired: None)
    executor.acquired.soft_limit = None
    executor.steps["run"] = lambda: time.sleep(0.05)
    assert runner.run(ITEM, lambda acquired: None)[0] == Done()
