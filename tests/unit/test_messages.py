"""Messages of exceptions for people, and the release of a job whose application has changed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from sidestream.executors.protocol import Acquired, ApplicationChanged, set_message
from sidestream.job.outcome import Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.retry import RetryPolicy
from sidestream.worker import wire
from sidestream.worker.outcome import DETAIL_LIMIT, ERROR_LIMIT, detail_of, outcome_of

ACQUIRED = Acquired("a", 0, None, RetryPolicy(), None)


def test_an_executor_s_message_replaces_the_exception_s_text() -> None:
    error = ValueError("duplicate key value violates unique constraint\nDETAIL: Key (code)=(x) already exists.")
    plain = outcome_of(error, ACQUIRED)
    set_message(error, "This code\nis taken.")
    told = outcome_of(error, ACQUIRED)
    assert isinstance(plain, Retry)
    assert isinstance(told, Retry)
    assert plain.error.startswith("ValueError: duplicate key")
    assert told.error == "ValueError: This code is taken."
    assert "DETAIL" in detail_of(error), "the developer reads all of it"


def test_a_changed_application_releases_the_job() -> None:
    release = Release(Reason(ReasonCode.UPGRADING), 2000)
    assert outcome_of(ApplicationChanged(release), ACQUIRED) is release


def test_an_action_s_own_except_does_not_catch_the_release() -> None:
    with pytest.raises(ApplicationChanged), contextlib.suppress(Exception):
        raise ApplicationChanged(Release(Reason(ReasonCode.UPGRADING), 2000))


class Says(Exception):
    """An exception whose ``__str__`` and ``__repr__`` call what it was made of."""

    def __str__(self) -> Any:
        return self.args[0]()

    __repr__ = __str__


def chain(length: int) -> BaseException:
    error = ValueError("first")
    for _ in range(length):
        error, cause = ValueError("next"), error
        error.__cause__ = cause
    return error


def nested(depth: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def shut_down() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Says(lambda: 1 / 0), "Says: its text cannot be read (ZeroDivisionError)"),
        (Says(shut_down), "Says: its text cannot be read (SystemExit)"),
        (Says(lambda: 5), "Says: its text cannot be read (TypeError)"),
        (Says(lambda: "x " * 10_000_000), "Says: x x x"),
        (ValueError("a lone \ud800 surrogate"), "ValueError: a lone \\ud800 surrogate"),
        (ValueError("a \x00 byte"), "ValueError: a \x00 byte"),
        (ExceptionGroup("many", [ValueError(str(at)) for at in range(10_000)]), "ExceptionGroup: many"),
        (chain(20_000), "ValueError: next"),
        (nested(3_000), "ExceptionGroup: group (1 sub-exception)"),
    ],
    ids=[
        "str raises",
        "str exits",
        "not a string",
        "huge",
        "surrogate",
        "nul",
        "wide group",
        "deep cause",
        "deep group",
    ],
)
def test_an_exception_that_is_hard_to_show_is_a_failed_attempt(error: BaseException, says: str) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        outcome = outcome_of(error, ACQUIRED)
        wire.send_report(ours, wire.Report(1, 1, True, [wire.JobReport(0, outcome, 0)], {}, [], False))
        report = wire.receive_report(theirs)
    assert report is not None
    [arrived] = report.job_reports
    assert isinstance(arrived.outcome, Retry)
    assert arrived.outcome.error.startswith(says)
    assert len(arrived.outcome.error) <= ERROR_LIMIT
    assert 0 < len(arrived.outcome.detail) <= DETAIL_LIMIT
