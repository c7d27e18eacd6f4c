"""Retry policies: delays, attempts, and what an exception requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestream.errors import InvalidJob, SettingsError, Snooze
from sidestream.job.outcome import Fail, Retry
from sidestream.job.retry import GIVE_UP, RetryPolicy, policy_of
from sidestream.job.retry_after import retry_after

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_delays_grow_up_to_the_longest() -> None:
    policy = RetryPolicy(max_attempts=100, first_delay=2, factor=2, max_delay=60, jitter=0)
    assert [policy.delay(attempt) for attempt in (1, 2, 3, 4, 5, 6, 90)] == [2, 4, 8, 16, 32, 60, 60]
    assert RetryPolicy(factor=1e6).delay(100_000, chance=lambda: 0.0) == 3600  # no overflow


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_jitter_only_shortens(attempt: int, jitter: float, chance: float) -> None:
    full = RetryPolicy(jitter=0).delay(attempt)
    delay = RetryPolicy(jitter=jitter).delay(attempt, chance=lambda: chance)
    assert full * (1 - jitter) - 1e-9 <= delay <= full


def test_the_last_attempt_fails_the_job() -> None:
    policy = RetryPolicy(max_attempts=2, first_delay=1, jitter=0)
    assert policy.decide(1, "broke", "trace") == Retry(1, "broke", "trace")
    assert policy.decide(2, "broke", "trace") == Fail("broke", "trace")
    assert isinstance(RetryPolicy(max_attempts=1).decide(1, "broke"), Fail)


@pytest.mark.parametrize(
    "options",
    [{"max_attempts": 0}, {"first_delay": -1}, {"max_delay": -1}, {"factor": 0.5}, {"jitter": 1.5}, {"jitter": -0.1}],
)
def test_impossible_policies_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        RetryPolicy(**options)


# -- by class of exception -------------------------------------------------------------------------------------------

PATIENT = RetryPolicy(max_attempts=20)
POLICY = RetryPolicy(by_exception={OSError: PATIENT, FileNotFoundError: GIVE_UP, ArithmeticError: GIVE_UP})


@pytest.mark.parametrize(
    ("error", "policy"),
    [
        (ConnectionResetError(), PATIENT),  # an OSError
        (FileNotFoundError(), GIVE_UP),  # nearer than OSError, whatever stands first
        (ZeroDivisionError(), GIVE_UP),
        (KeyError(), POLICY),
    ],
)
def test_the_nearest_class_decides(error: Exception, policy: RetryPolicy) -> None:
    assert POLICY.for_error(error) is policy


def test_give_up_fails_the_job_immediately() -> None:
    assert GIVE_UP.decide(1, "no such file") == Fail("no such file")


def test_a_declaration_may_be_the_dictionary_alone() -> None:
    assert policy_of("a", {OSError: PATIENT}) == RetryPolicy(by_exception={OSError: PATIENT})
    with pytest.raises(SettingsError, match="expected a RetryPolicy, or a dictionary"):
        policy_of("a", 5)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"OSError": GIVE_UP}, "expected a class of exceptions"),
        ({int: GIVE_UP}, "expected a class of exceptions"),
        ({OSError: 5}, "expected a RetryPolicy, or GIVE_UP"),
        ({OSError: POLICY}, "the nearest one decides"),
    ],
)
def test_impossible_policies_by_class_are_refused(policies: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RetryPolicy(by_exception=policies)


# -- what the exception asks for -------------------------------------------------------------------------------------


def failure(**attributes: Any) -> Exception:
    error = RuntimeError("busy")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (failure(retry_after=7), 7),
        (failure(retry_after="7.5"), 7.5),
        (failure(retry_after=timedelta(minutes=2)), 120),
        (failure(retry_after=-3), 0),
        (failure(response=SimpleNamespace(headers={"Retry-After": "30"})), 30),
        (failure(response=SimpleNamespace(headers={"retry-after": "30"})), 30),
        (failure(headers={"Retry-After": "Sun, 01 Mar 2026 12:01:00 GMT"}), 60),
        (failure(headers={"Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}), 0),
        (failure(retry_after=None, response=SimpleNamespace(headers={})), None),
        (failure(retry_after=True), None),
        (failure(retry_after=float("nan")), None),
        (failure(retry_after="soon"), None),
        (failure(retry_after=lambda: 5), None),
        (failure(response=None), None),
        (failure(), None),
    ],
)
def test_an_exception_may_set_the_retry_delay(error: Exception, seconds: float | None) -> None:
    assert retry_after(error, NOW) == seconds


def test_a_property_that_raises_does_not_hide_the_failure() -> None:
    class Odd(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("no response was set")

    assert retry_after(Odd(), NOW) is None


def test_a_requested_delay_is_applied_jittered_and_capped() -> None:
    policy = RetryPolicy(max_attempts=3, jitter=0.5, max_retry_after=100)
    assert policy.decide(1, "busy", after=10, chance=lambda: 0.0) == Retry(10, "busy")
    assert policy.decide(1, "busy", after=10, chance=lambda: 1.0) == Retry(15, "busy")
    assert policy.decide(1, "busy", after=1e9) == Retry(100, "busy")
    assert isinstance(policy.decide(3, "busy", after=10), Fail)


# -- snooze ----------------------------------------------------------------------------------------------------------


def test_a_snooze_carries_its_delay_and_reason() -> None:
    snooze = Snooze(timedelta(minutes=5), "the courier\nis closed")
    assert (snooze.delay, snooze.reason) == (300, "the courier is closed")


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "5", True, None])
def test_an_impossible_snooze_is_refused(delay: Any) -> None:
    with pytest.raises(InvalidJob, match="expected seconds"):
        Snooze(delay)
