"""Build a job from a call: every option, the declaration's defaults, and every refusal."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from sidestream.errors import InvalidJob, InvalidName, UnsupportedOption
from sidestream.job.building import build_job, check_job
from sidestream.job.job import Job, Unique
from sidestream.job.options import JOB_OPTIONS, LATER_OPTIONS

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_call_becomes_a_job() -> None:
    job = build_job("a", [1], {"b": 2}, now=NOW, queue="mail", key="k", delay=1.5)
    assert job == Job("a", (1,), {"b": 2}, "mail", "k", NOW + timedelta(seconds=1.5))
    assert build_job("a", now=NOW) == Job("a")
    assert build_job("a", now=NOW, delay=0).run_at is None
    assert build_job("a", now=NOW, delay=timedelta(minutes=1)).run_at == NOW + timedelta(minutes=1)


def test_every_option_reaches_the_job() -> None:
    job = build_job(
        "a", now=NOW, priority=0, group="company:2", limit="courier:7", unique="pdf:5", expires_in=60, delay=10
    )
    assert job == Job(
        "a",
        run_at=NOW + timedelta(seconds=10),
        priority=0,
        group="company:2",
        limit="courier:7",
        unique=Unique("pdf:5"),
        expires_at=NOW + timedelta(seconds=70),  # counted from when it is due
    )
    assert build_job("a", now=NOW, **dict.fromkeys(JOB_OPTIONS)) == Job("a")  # None is "not given"


def test_a_call_wins_over_what_is_declared() -> None:
    declared: Any = {"queue": "mail", "priority": 7, "key": "k", "unique": Unique("u"), "expires_in": 60, "limit": None}
    job = build_job("a", now=NOW, defaults=declared, key="other", expires_at=NOW + timedelta(hours=1))
    assert (job.queue, job.priority, job.key, job.unique) == ("mail", 7, "other", Unique("u"))
    assert job.expires_at == NOW + timedelta(hours=1)
    job = build_job("a", now=NOW, defaults=declared, unique="v", unique_for=60, priority=0)
    assert (job.unique, job.priority) == (Unique("v", "window", 60), 0)


# -- when ------------------------------------------------------------------------------------------------------------


def test_run_at_is_kept_in_utc() -> None:
    athens = timezone(timedelta(hours=2))
    assert build_job("a", now=NOW, run_at=datetime(2026, 3, 1, 14, tzinfo=athens)).run_at == NOW
    assert build_job("a", now=NOW, run_at="2026-03-01T14:00+02:00").run_at == NOW


@pytest.mark.parametrize(
    ("wall", "utc"),
    [
        ("2026-03-29 01:59", "00:59"),
        ("2026-03-29 02:00", "01:00"),  # skipped: 03:00 by the clock that went on
        ("2026-03-29 02:30", "01:30"),  # skipped: 03:30
        ("2026-03-29 03:00", "01:00"),
        ("2026-10-25 02:30", "00:30"),  # twice: the first
        ("2026-10-25 02:30+01:00", "01:30"),  # an offset says which
        ("2026-10-25 03:00", "02:00"),
        ("2026-07-01", "22:00"),
    ],
)
def test_a_naive_time_is_read_in_the_given_time_zone(wall: str, utc: str) -> None:
    zone = None if "+" in wall else "Europe/Brussels"
    due = build_job("a", now=NOW, run_at=wall, time_zone=zone).run_at
    assert due is not None
    assert due.strftime("%H:%M") == utc
    assert due.tzinfo is UTC


def test_fold_selects_the_second_of_two_equal_local_times() -> None:
    twice = datetime(2026, 10, 25, 2, 30, fold=1)  # noqa: DTZ001
    due = build_job("a", now=NOW, run_at=twice, time_zone="Europe/Brussels").run_at
    assert due == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_a_caller_may_set_the_time_zone_of_naive_times() -> None:
    wall = datetime(2026, 7, 1, 12)  # noqa: DTZ001
    assert build_job("a", now=NOW, run_at=wall, local="UTC").run_at == datetime(2026, 7, 1, 12, tzinfo=UTC)
    due = build_job("a", now=NOW, run_at=wall, local="UTC", time_zone="Asia/Tokyo").run_at
    assert due == datetime(2026, 7, 1, 3, tzinfo=UTC)


# -- duplicates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "unique"),
    [
        ({"unique": "u"}, Unique("u")),
        ({"unique": "u", "unique_until": "started"}, Unique("u", "started")),
        ({"unique": "u", "unique_for": 60}, Unique("u", "window", 60)),
        (
            {"unique": "u", "unique_for": timedelta(hours=1), "on_conflict": "replace"},
            Unique("u", "window", 3600, "replace"),
        ),
        ({"unique": Unique("u", on_conflict="newest")}, Unique("u", on_conflict="newest")),
    ],
)
def test_short_forms_make_a_unique(options: dict[str, Any], unique: Unique) -> None:
    assert build_job("a", now=NOW, **options).unique == unique


# -- refusals --------------------------------------------------------------------------------------------------------


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
        ({"run_at": datetime(2026, 1, 1)}, "no time zone; give time_zone="),  # noqa: DTZ001
        ({"run_at": "2026-01-01 12:00"}, "no time zone"),
        ({"run_at": "tomorrow"}, "expected ISO 8601"),
        ({"run_at": 5}, "expected a datetime"),
        ({"run_at": NOW, "delay": 1}, "give one of them"),
        ({"run_at": NOW, "time_zone": "Europe/Brussels"}, "leave one of them out"),
        ({"run_at": "2026-01-01", "time_zone": "Europe/Brusels"}, "'Europe/Brusels'.*is not known here"),
        ({"run_at": "2026-01-01", "time_zone": "Europe"}, "is not known here"),
        ({"run_at": "2026-01-01", "time_zone": "../etc/passwd"}, "is not known here"),
        ({"run_at": "2026-01-01", "time_zone": ""}, "is not known here"),
        ({"run_at": "2026-01-01", "time_zone": 2}, "is not known here"),
        ({"run_at": "0001-01-01", "time_zone": "Asia/Tokyo"}, "outside the years"),
        ({"time_zone": "Europe/Brussels"}, "without run_at or expires_at"),
        ({"expires_in": 0}, "expected seconds, above 0"),
        ({"expires_in": -1}, "expected seconds, above 0"),
        ({"expires_at": datetime(2027, 1, 1)}, "expires_at=2027.* no time zone"),  # noqa: DTZ001
        ({"expires_at": NOW, "expires_in": 5}, "give one of them"),
        ({"run_at": NOW, "expires_at": NOW}, "would never run"),
        ({"priority": -1}, "priority -1 is not allowed: expected 0 .first. to 9"),
        ({"priority": 10}, "expected 0 .first. to 9"),
        ({"priority": "high"}, "expected 0 .first. to 9"),
        ({"priority": True}, "expected 0 .first. to 9"),
        ({"priority": 1.5}, "expected 0 .first. to 9"),
        ({"unique_until": "done"}, "without unique; add unique="),
        ({"unique": Unique("u"), "on_conflict": "return"}, "beside a Unique"),
        ({"unique": "u", "unique_until": "forever"}, "'forever'.*expected 'started', 'done' or 'window'"),
        ({"unique": "u", "on_conflict": "drop"}, "'drop'.*expected 'return', 'replace' or 'newest'"),
        ({"unique": "u", "unique_until": "window"}, "a window needs its length"),
        ({"unique": "u", "unique_until": "done", "unique_for": 5}, "contradict each other"),
        ({"unique": "u", "unique_for": 0}, "unique_for=0 .*above 0"),
        ({"unique": Unique("u", "done", 5)}, "a window needs its length"),
        ({"unique": Unique("u", "window", -5)}, "above 0"),
        ({"args": "abc"}, "expected a list or a tuple"),
        ({"args": {"a": 1}}, "expected a list or a tuple"),
        ({"args": 5}, "expected a list or a tuple"),
        ({"kwargs": [1]}, "expected a dictionary"),
    ],
)
def test_impossible_calls_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidJob, match=message) as refused:
        build_job("a", now=NOW, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [{"key": ""}, {"group": ""}, {"group": 5}, {"limit": ":7"}, {"limit": "a\n"}, {"unique": ""}, {"unique": 5}],
)
def test_invalid_names_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidName, match="is not allowed"):
        build_job("a", now=NOW, **options)


@pytest.mark.parametrize("option", sorted(LATER_OPTIONS))
def test_unknown_options_are_refused_by_name(option: str) -> None:
    later: Any = {option: 1}
    with pytest.raises(UnsupportedOption, match=f"'{option}'.*later release"):
        build_job("a", now=NOW, **later)


@pytest.mark.parametrize("option", ["concurrency", "rate", "burst", "weight", "aging"])
def test_a_rule_is_no_option_of_one_job(option: str) -> None:
    rule: Any = {option: 1}
    with pytest.raises(UnsupportedOption, match=f"'{option}'.*a rule for many jobs.*set it with 'sidestream"):
        build_job("a", now=NOW, **rule)


def test_option_names_of_other_queues_are_translated() -> None:
    eta: Any = {"eta": NOW}
    with pytest.raises(UnsupportedOption, match="it is run_at"):
        build_job("a", now=NOW, **eta)


def test_an_argument_given_as_an_option_is_explained() -> None:
    argument: Any = {"invoice_id": 1}
    with pytest.raises(UnsupportedOption, match=r"kwargs=\{'invoice_id': ...\}"):
        build_job("a", now=NOW, **argument)


@pytest.mark.parametrize(
    "job",
    [
        Job("a b"),
        Job("a", queue=""),
        Job("a", key=""),
        Job("a", id=5),
        Job("a", run_at=datetime(2026, 1, 1)),  # noqa: DTZ001
        Job("a", expires_at=datetime(2026, 1, 1)),  # noqa: DTZ001
        Job("a", priority=10),
        Job("a", group=""),
        Job("a", limit=""),
        Job("a", unique=Unique("u", "window")),
    ],
)
def test_a_job_made_by_hand_is_checked_too(job: Job) -> None:
    with pytest.raises(InvalidJob):
        check_job(job)


def test_texts_that_cannot_be_keys_are_stored_as_a_hash_of_the_whole() -> None:
    """They are made of what users wrote: a customer's name with a line end is no reason to refuse a Confirm."""
    unprintable, long = "partner:Ann\nLee", "partner:" + "x" * 300
    for text in (unprintable, long, "\ud800", "\x1b[31m"):
        job = build_job("a", now=NOW, key=text, group=text, unique=text, limit=f"courier:{text}")
        declared = build_job("a", now=NOW, defaults={"key": text, "unique": Unique(text)})
        for kept in (job.key, job.group, job.unique and job.unique.key, declared.key, job.limit):
            assert kept is not None
            assert kept.isprintable()
            assert len(kept) <= 200
        assert (job.key, job.unique) == (declared.key, declared.unique)
        assert str(job.limit).startswith("courier:#")
        other = build_job("a", now=NOW, key=f"{text} ", limit=f"courier:{text} ")
        assert job.key != other.key
        assert job.limit != other.limit
    assert str(build_job("a", now=NOW, key=unprintable).key).startswith("partner:AnnLee#")
    for refused in ({"key": ""}, {"limit": "no rule\n:7"}):
        with pytest.raises(InvalidName):
            build_job("a", now=NOW, **refused)  # type: ignore[arg-type]
