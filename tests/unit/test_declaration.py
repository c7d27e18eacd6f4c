"""Functions that cannot run, and arguments that do not match, are refused at declaration or at the call."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sidestream.broker.memory import MemoryBroker
from sidestream.client import Client
from sidestream.errors import GiveUp, InvalidJob, SettingsError
from sidestream.executors.declaration import call
from sidestream.executors.odoo.model_action import ModelAction
from sidestream.executors.python.actions import Actions
from sidestream.executors.python.context import Context
from sidestream.job.codec import Signer
from sidestream.relay.relay import Relay


def plain(context: Any, order_id: int, *, express: bool = False) -> None: ...


async def later(context: Any) -> None: ...


async def later_in_pieces(context: Any) -> AsyncIterator[int]:
    yield 1


def in_pieces(context: Any) -> Iterator[int]:
    yield 1


class Callables:
    async def __call__(self, context: Any) -> None: ...

    def method(self, context: Any, order_id: int) -> None: ...


def no_parameter() -> None: ...


def no_context(order_id: int) -> None: ...


def only_named(*, context: Any) -> None: ...


def only_names(**context: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (later, "is an async function, whose code would never run"),
        (functools.partial(later), "is an async function"),
        (Callables(), "is an async function"),
        (later_in_pieces, "is an async generator"),
        (in_pieces, "is a generator"),
        (no_parameter, r"is no_parameter\(\) -> 'None'; expected the job's context as its first parameter"),
        (no_context, r"is no_context\(order_id: 'int'\)"),
        (only_named, "expected the job's context as its first parameter"),
        (only_names, "expected the job's context as its first parameter"),
        (None, "is None; expected a function"),
    ],
)
def test_a_function_that_could_not_run_is_refused_where_it_is_declared(function: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=f"action 'ship' .*{said}"):
        Actions().action("ship")(function)


def test_every_way_to_name_the_context_is_accepted() -> None:
    actions = Actions()

    def annotated(job: Context) -> None: ...

    def quoted(job: "sidestream.Context") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    def unused(_context: Any) -> None: ...

    def nameless(_: Any) -> None: ...

    def anything(*args: Any) -> None: ...

    for function in (plain, annotated, quoted, unused, nameless, anything, Callables().method, print):
        actions.action(function.__name__)(function)
    assert len(list(actions)) == 8


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"read": in_pieces}, "The read step of action 'ship' is a generator"),
        ({"call": later}, "The call step of action 'ship' is an async function"),
        ({"call": lambda context: None}, r"it is called with \(context, request\)"),
        ({"write": lambda context, request: None}, r"it is called with \(context, request, answer\)"),
    ],
)
def test_steps_are_checked_too(steps: dict[str, Callable[..., Any]], said: str) -> None:
    sound = {
        "read": lambda context: None,
        "call": lambda context, request: None,
        "write": lambda context, request, answer: None,
    }
    Actions().three_step("ship", **sound)
    with pytest.raises(SettingsError, match=said):
        Actions().three_step("ship", **(sound | steps))


def test_the_bare_decorator_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"instead of a name; write @actions.action\("):
        Actions().action(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retries": 3}, r"no option 'retries' .* write retry=RetryPolicy\(max_attempts=...\)"),
        ({"timeout": 3}, "no option 'timeout' .* write soft_limit"),
        ({"colour": "red"}, "no option 'colour' .* expected queue, key, limit, group, unique, priority"),
        ({"function": plain}, "no option 'function'"),
    ],
)
def test_an_unknown_option_is_refused_where_it_is_written(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Actions().action("ship", **options)  # before it decorates anything
    with pytest.raises(SettingsError, match=said):
        Actions().three_step("ship", read=plain, call=plain, write=plain, **options)


@pytest.mark.parametrize("declare", [lambda **limits: Actions().action("ship", **limits)(plain), ModelAction])
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"soft_limit": 60, "hard_limit": 30}, "hard_limit=30 of .* is not above its soft_limit=60"),
        ({"soft_limit": 60, "hard_limit": 60}, "is not above"),
        ({"soft_limit": 0}, "soft_limit=0 of .* expected seconds above 0"),
        ({"hard_limit": "1 h"}, "hard_limit='1 h' of .* expected seconds above 0"),
        ({"hard_limit": float("nan")}, "expected seconds above 0"),
    ],
)
def test_invalid_time_limits_are_refused(declare: Callable[..., object], limits: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        declare(**limits)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ([], {}, r"do not match its function: missing a required argument: 'order_id'; expected plain\(context"),
        ([1, 2], {}, "too many positional arguments"),
        ([1], {"expres": True}, "unexpected keyword argument 'expres'"),
        ([1], {"context": 1}, "multiple values for argument 'context'"),
        ("12", {}, "expected a list or a tuple"),
        ([1], [("express", True)], "expected a dictionary"),
    ],
)
def test_wrong_arguments_are_refused_when_the_job_is_enqueued(args: Any, kwargs: Any, said: str) -> None:
    actions = Actions()
    actions.action("ship")(plain)
    jobs = Client(Relay(MemoryBroker), lambda: Signer([("k", b"s" * 32)]), actions=actions)
    jobs.job("ship", [1], {"express": True})
    with pytest.raises(InvalidJob, match=said):
        jobs.job("ship", args, kwargs)
    with pytest.raises(InvalidJob, match=said):
        jobs.enqueue_direct(plain, args, kwargs)


def test_wrong_arguments_fail_the_job_immediately() -> None:
    with pytest.raises(GiveUp, match=r"do not match the function of action 'ship'.*required positional argument"):
        call("ship", plain, None)

    def faulty(context: Any) -> None:
        plain(context)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="order_id") as raised:
        call("ship", faulty, None)
    assert not isinstance(raised.value, GiveUp)


@pytest.mark.parametrize("function", [later, later_in_pieces, in_pieces])
def test_a_result_that_shows_that_nothing_ran_fails_the_job_immediately(function: Callable[..., Any]) -> None:
    with pytest.raises(GiveUp, match="so none of its code ran"):
        call("ship", lambda context: function(context), None)
