"""The job's small values: names, references, states, outcomes of a failure, and the job that a call asks for."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestream.errors import BadReference, InvalidJob, InvalidName, SettingsError, UnknownVersion, UnsupportedOption
from sidestream.job.building import LATER_OPTIONS, build_job, check_job
from sidestream.job.job import Job
from sidestream.job.names import KEY_LIMIT, check_action, check_key, check_queue, tag
from sidestream.job.outcome import Bury, Retry
from sidestream.job.reference import (
    DIRECT_SIZE,
    KEY_OFFSET_FROM_END,
    NO_TAG8,
    ROW_SIZE,
    Reference,
    direct_reference,
    row_reference,
)
from sidestream.job.retry import RetryPolicy
from sidestream.job.states import MOVES, TERMINAL, State

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DATABASE = b"database"

# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "9", "_x", "x" * 63])
def test_plain_names_are_allowed(name: str) -> None:
    assert check_queue(name) == check_action(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:b", "a\n", "\nq", ".a", "-a", "ö", "a{b}", "a*", "x" * 64, None, 5]
)
def test_odd_names_are_refused_with_the_name_and_the_rule(name: Any) -> None:
    for check in (check_queue, check_action):
        with pytest.raises(InvalidName, match="expected 1 to 63"):
            check(name)


@pytest.mark.parametrize("key", ["a", "order 5/Ω", "x" * KEY_LIMIT])
def test_keys_are_free_text(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * (KEY_LIMIT + 1), "a\nb", "a\x00b", None, 5, b"a"])
def test_odd_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidName, match="expected 1 to 200"):
        check_key(key)


def test_tags_are_short_and_stable() -> None:
    # Written down, because references that other releases left in Redis hold these bytes.
    assert tag("default", 4).hex() == "c522b539"
    assert tag("order/Ω", 8).hex() == "5fbddc079b535008"


# -- references ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2**63 - 1), st.sampled_from([None, "k", "order/1"]))
def test_a_row_s_reference_comes_back(row_id: int, key: str | None) -> None:
    reference = row_reference(DATABASE, row_id, "a.b", key)
    raw = reference.pack()
    assert len(raw) == ROW_SIZE
    assert Reference.unpack(raw) == reference
    assert not reference.direct
    assert (raw[-KEY_OFFSET_FROM_END:] == NO_TAG8) == (key is None)


@given(st.uuids(), st.sampled_from([None, "k"]))
def test_a_direct_job_s_reference_comes_back(uuid: UUID, key: str | None) -> None:
    reference = direct_reference(uuid, "a.b", key)
    raw = reference.pack()
    assert len(raw) == DIRECT_SIZE
    assert Reference.unpack(raw) == reference
    assert reference.direct


@given(st.lists(st.integers(1, 2**63 - 1), min_size=2))
def test_references_of_one_database_sort_by_id(ids: list[int]) -> None:
    packed = [row_reference(DATABASE, row_id, "a", None).pack() for row_id in ids]
    assert [Reference.unpack(raw).id for raw in sorted(packed)] == sorted(ids)


@given(st.binary(max_size=60))
def test_foreign_bytes_never_pass_and_never_raise_anything_else(raw: bytes) -> None:
    try:
        reference = Reference.unpack(raw)
    except (BadReference, UnknownVersion):
        return
    assert reference.pack() == raw


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", BadReference),
        (b"\x01short", BadReference),
        (b"hello", BadReference),
        (row_reference(DATABASE, 1, "a", None).pack() + b"x", BadReference),
        (b"\x03" + bytes(40), UnknownVersion),
    ],
)
def test_odd_references_are_refused(raw: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Reference.unpack(raw)


# -- retry -----------------------------------------------------------------------------------------------------------


def test_delays_grow_up_to_the_longest() -> None:
    policy = RetryPolicy(max_attempts=100, first_delay=2, factor=2, max_delay=60, jitter=0)
    assert [policy.delay(attempt) for attempt in (1, 2, 3, 4, 5, 6, 90)] == [2, 4, 8, 16, 32, 60, 60]
    assert RetryPolicy(factor=1e6).delay(100_000, chance=lambda: 0.0) == 3600  # no overflow


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_jitter_only_takes_off(attempt: int, jitter: float, chance: float) -> None:
    full = RetryPolicy(jitter=0).delay(attempt)
    delay = RetryPolicy(jitter=jitter).delay(attempt, chance=lambda: chance)
    assert full * (1 - jitter) - 1e-9 <= delay <= full


def test_the_last_attempt_buries() -> None:
    policy = RetryPolicy(max_attempts=2, first_delay=1, jitter=0)
    assert policy.decide(1, "broke", "trace") == Retry(1, "broke", "trace")
    assert policy.decide(2, "broke", "trace") == Bury("broke", "trace")
    assert isinstance(RetryPolicy(max_attempts=1).decide(1, "broke"), Bury)


@pytest.mark.parametrize(
    "options",
    [{"max_attempts": 0}, {"first_delay": -1}, {"max_delay": -1}, {"factor": 0.5}, {"jitter": 1.5}, {"jitter": -0.1}],
)
def test_impossible_policies_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        RetryPolicy(**options)


# -- states ----------------------------------------------------------------------------------------------------------


def test_every_state_says_where_it_may_go() -> None:
    assert set(MOVES) == set(State)
    assert set(State) - TERMINAL == {State.OPEN}
    assert MOVES[State.DONE] == frozenset()
    assert all(State.OPEN in MOVES[state] for state in (State.DEAD, State.CANCELLED))


# -- the job that a call asks for ------------------------------------------------------------------------------------


def test_a_call_becomes_a_job() -> None:
    job = build_job("a", [1], {"b": 2}, now=NOW, queue="mail", key="k", delay=1.5)
    assert job == Job("a", (1,), {"b": 2}, "mail", "k", NOW + timedelta(seconds=1.5))
    assert build_job("a", now=NOW) == Job("a")
    assert build_job("a", now=NOW, delay=0).run_at is None
    assert build_job("a", now=NOW, delay=timedelta(minutes=1)).run_at == NOW + timedelta(minutes=1)


def test_run_at_is_kept_in_utc() -> None:
    athens = timezone(timedelta(hours=2))
    assert build_job("a", now=NOW, run_at=datetime(2026, 3, 1, 14, tzinfo=athens)).run_at == NOW


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1}, "expected seconds, 0 or more"),
        ({"delay": timedelta(seconds=-1)}, "expected seconds"),
        ({"delay": math.nan}, "expected seconds"),
        ({"delay": math.inf}, "expected seconds"),
        ({"delay": True}, "expected seconds"),
        ({"delay": "5"}, "expected seconds"),
        ({"delay": 1e15}, "year 9999"),
        ({"run_at": datetime(2026, 1, 1)}, "no time zone"),  # noqa: DTZ001
        ({"run_at": "tomorrow"}, "expected an aware datetime"),
        ({"run_at": NOW, "delay": 1}, "give one of them"),
        ({"args": "abc"}, "expected a list or a tuple"),
        ({"args": {"a": 1}}, "expected a list or a tuple"),
        ({"args": 5}, "expected a list or a tuple"),
        ({"kwargs": [1]}, "expected a dictionary"),
    ],
)
def test_impossible_calls_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidJob, match=message):
        build_job("a", now=NOW, **options)


@pytest.mark.parametrize("option", sorted(LATER_OPTIONS))
def test_options_of_later_releases_are_refused_by_name(option: str) -> None:
    with pytest.raises(UnsupportedOption, match=f"'{option}'.*later release"):
        build_job("a", now=NOW, options={option: 1})


def test_an_argument_given_as_an_option_is_explained() -> None:
    with pytest.raises(UnsupportedOption, match=r"kwargs=\{'invoice_id': ...\}"):
        build_job("a", now=NOW, options={"invoice_id": 1})


@pytest.mark.parametrize(
    "job",
    [Job("a b"), Job("a", queue=""), Job("a", key=""), Job("a", id=5), Job("a", run_at=datetime(2026, 1, 1))],  # noqa: DTZ001
)
def test_a_job_made_by_hand_is_checked_too(job: Job) -> None:
    with pytest.raises(InvalidJob):
        check_job(job)
