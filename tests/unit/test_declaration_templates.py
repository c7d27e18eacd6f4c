"""Templates of a declaration are rendered from a job's arguments and checked at declaration."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sidestream.errors import InvalidJob, SettingsError
from sidestream.executors.odoo.model_action import ModelAction
from sidestream.executors.python.actions import Action, Actions
from sidestream.job.building import build_job
from sidestream.job.job import Job, Unique
from sidestream.job.retry import GIVE_UP, RetryPolicy

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def ship(context: Any, order_id: int, carrier_id: int | None = None, *, express: bool = False) -> None:
    raise AssertionError("not run here")


def anything(context: Any, **named: Any) -> None:
    raise AssertionError("not run here")


def job_of(action: Action, *args: Any, **kwargs: Any) -> Job:
    return build_job(action.name, args, kwargs, now=NOW, defaults=action.job_options(args, kwargs, ()))


def test_texts_are_made_of_the_arguments_by_name() -> None:
    action = Action(
        "ship",
        ship,
        queue="courier",
        priority=2,
        key="order:{order_id}",
        limit="courier:{carrier_id}",
        group="fast:{express}",
        unique=Unique("ship:{order_id}", on_conflict="newest"),
        expires_in=60,
    )
    job = job_of(action, 5, carrier_id=7)
    assert (job.queue, job.priority, job.key, job.limit, job.group) == (
        "courier",
        2,
        "order:5",
        "courier:7",
        "fast:False",
    )
    assert job.unique == Unique("ship:5", on_conflict="newest")
    assert job.expires_at is not None
    assert job_of(action, 5).limit == "courier:none"  # by the function's own default


def test_a_function_may_replace_a_template() -> None:
    action = Action("ship", ship, limit=lambda order_id, carrier_id=None: carrier_id and f"courier:{carrier_id}")
    assert job_of(action, 5, 7).limit == "courier:7"
    assert job_of(action, 5).limit is None


def test_a_function_with_keyword_arguments_accepts_any_name() -> None:
    assert job_of(Action("any", anything, key="order:{order}"), order=5).key == "order:5"


def test_options_of_the_call_are_not_rendered_from_the_arguments() -> None:
    action = Action("any", anything, key="order:{order}", unique="{order}")
    assert action.job_options((), {}, ("key", "unique")) == {"queue": "default", "priority": 5, "expires_in": None}


def test_short_forms_work_in_a_declaration() -> None:
    actions = Actions()
    actions.action("ship", unique="ship:{order_id}", unique_for=60, retry={OSError: GIVE_UP})(ship)
    assert actions.get("ship").unique == Unique("ship:{order_id}", "window", 60)
    assert actions.get("ship").retry == RetryPolicy(by_exception={OSError: GIVE_UP})
    assert ModelAction.of(unique="x:{id}", unique_until="started").unique == Unique("x:{id}", "started")
    assert ModelAction(retry={OSError: GIVE_UP}).retry.by_exception == {OSError: GIVE_UP}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "order:{order}"}, "names 'order', which is not an argument of it; its arguments are order_id"),
        ({"limit": "courier:{carrier}"}, "limit .* names 'carrier'"),
        ({"unique": Unique("x:{nothing}")}, "unique .* names 'nothing'"),
        ({"key": "order:{order_id"}, "cannot be read"),
        ({"key": "order:{}"}, "expected plain names in braces"),
        ({"key": "order:{order_id!r}"}, "expected plain names in braces"),
        ({"priority": 11}, "expected 0 .first. to 9"),
        ({"expires_in": 0}, "above 0"),
        ({"unique": Unique("x", "window")}, "a window needs its length"),
        ({"retry": "often"}, "expected a RetryPolicy"),
    ],
)
def test_invalid_declarations_are_refused_when_declared(options: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingsError, InvalidJob), match=message):
        Action("ship", ship, **options)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "do not match its function: missing a required argument: 'order_id'"),
        (([5],), {}, "needs a text or a number for 'order_id', but this call passes a list"),
    ],
)
def test_arguments_that_cannot_be_rendered_are_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        job_of(Action("ship", ship, key="order:{order_id}"), *args, **kwargs)


def test_a_missing_name_is_reported() -> None:
    with pytest.raises(InvalidJob, match="names 'order', which this call does not pass; it passes item"):
        job_of(Action("any", anything, key="order:{order}"), item=5)
