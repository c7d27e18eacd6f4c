"""What people read of an exception, and how an attempt ends that the application's own change interrupted."""

from __future__ import annotations

import contextlib

import pytest

from sidestream.executors.protocol import Acquired, ApplicationChanged, set_message
from sidestream.job.outcome import Release, Retry
from sidestream.job.retry import RetryPolicy
from sidestream.worker.outcome import detail_of, outcome_of

OPENED = Acquired("a", 0, None, RetryPolicy(), None)


def test_an_executor_s_words_stand_in_for_the_exception_s_own() -> None:
    error = ValueError("duplicate key value violates unique constraint\nDETAIL: Key (code)=(x) already exists.")
    plain = outcome_of(error, OPENED)
    set_message(error, "This code\nis taken.")
    told = outcome_of(error, OPENED)
    assert isinstance(plain, Retry)
    assert isinstance(told, Retry)
    assert plain.error.startswith("ValueError: duplicate key")
    assert told.error == "ValueError: This code is taken."
    assert "DETAIL" in detail_of(error), "the developer reads all of it"


def test_what_is_not_now_is_handed_back_as_it_says() -> None:
    release = Release("paused: modules change", 2000)
    assert outcome_of(ApplicationChanged(release), OPENED) is release


def test_an_action_s_own_except_does_not_catch_what_hands_it_back() -> None:
    with pytest.raises(ApplicationChanged), contextlib.suppress(Exception):
        raise ApplicationChanged(Release("paused: modules change", 2000))
