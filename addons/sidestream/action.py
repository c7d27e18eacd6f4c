"""Declare with ``@action`` which methods can run in the background; no other method can."""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from sidestream import GIVE_UP, InvalidJob, ModelAction, RetryPolicy, UnsupportedOption

from odoo import api
from odoo.exceptions import LockError, RedirectWarning, UserError

labels: dict[str, list[Any]] = {}
"""The labels of the declared methods by the method's name, so that people can search jobs by label."""


def action(
    function: Callable[..., Any] | None = None, /, *, public: bool = False, **options: Any
) -> Callable[..., Any]:
    """Declare a method as an action: ``@action`` or ``@action(key="carrier:{carrier_id}")``.

    The method is ``@api.private`` unless ``public=True``, which is meant for a method that is also a button. Such a
    call runs in the caller's request and ignores key, limit, queue and uniqueness.

    The other options are the fields of :class:`sidestream.ModelAction`: queue, priority, key, limit, group, unique
    (with unique_until, unique_for, on_conflict), expires_in, run_as, retry, soft_limit, hard_limit, commits,
    three_step and label (a text or a LazyTranslate, which each person reads in their own language). A method that
    overrides a declared one needs no decorator.

    Retrying does not help against a business error or a bug. UserError (with ValidationError, AccessError and
    MissingError), RedirectWarning and TypeError therefore end the job immediately, unless ``retry`` names them or one
    of their base classes below Exception.
    """
    known = [*(field.name for field in fields(ModelAction)), "unique_until", "unique_for", "on_conflict", "public"]
    for name in options:
        if name not in known:
            raise UnsupportedOption(f"There is no option {name!r} for @action; the options are {', '.join(known)}.")
    declared = ModelAction.of(**options)
    declared = replace(declared, retry=_final_for_business_errors(declared.retry))
    if public and declared.three_step:
        raise InvalidJob(
            "public=True and three_step=True exclude each other, because an RPC call would only create a generator. "
            "Enqueue the action in a public method."
        )

    def declare(method):
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise InvalidJob(
                f"The action {method.__qualname__} is async, which is not supported; write it without async."
            )
        if inspect.isgeneratorfunction(method) != declared.three_step:
            what = "declares three_step but yields no call" if declared.three_step else "yields without three_step=True"
            raise InvalidJob(f"The action {method.__qualname__} {what}; its job would end without doing anything.")
        if declared.label:
            labels.setdefault(method.__name__, []).append(declared.label)
        return declared.declare(method if public else api.private(method))

    return declare if function is None else declare(function)


def _final_for_business_errors(retry: RetryPolicy) -> RetryPolicy:
    """Return ``retry`` with an immediate end for the errors that retrying cannot help."""
    busy = replace(retry.for_error(LockError("")), by_exception={})  # a UserError, but a temporary one
    final = {UserError: GIVE_UP, LockError: busy, RedirectWarning: GIVE_UP, TypeError: GIVE_UP}
    return replace(retry, by_exception=final | dict(retry.by_exception))
