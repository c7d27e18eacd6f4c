"""Messages of exceptions for people, and the release of a job whose application has changed."""

from __future__ import annotations

import contextlib

import pytest

from sidestream.executors.protocol import Acquired, ApplicationChanged, set_message
from sidestream.job.outcome import Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.retry import RetryPolicy
from sidestream.worker.outcome import detail_of, outcome_of

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
