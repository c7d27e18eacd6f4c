"""``@action``: the methods that may run in the background. Nothing else ever runs."""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from sidestream import GIVE_UP, InvalidJob, ModelAction, RetryPolicy, UnsupportedOption

from odoo import api
from odoo.exceptions import LockError, RedirectWarning, UserError

labels: dict[str, list[Any]] = {}
"""What people read of the declared methods, by the method's name: so that a list can be searched for it."""


def action(
    function: Callable[..., Any] | None = None, /, *, public: bool = False, **options: Any
) -> Callable[..., Any]:
    """Declare a model's method as an action: ``@action`` or ``@action(queue="pdf", key="carrier:{carrier_id}")``.

    Nobody calls it over RPC (it is ``@api.private``) unless ``public=True``, which is for a method that is a button as
    well: such a call runs in the caller's request and knows no key, limit, queue or uniqueness.

    The other options are the fields of :class:`sidestream.ModelAction`: queue, priority, key, limit, group, unique
    (with unique_until, unique_for, on_conflict), expires_in, run_as, retry, soft_limit, hard_limit, commits,
    three_step, label (a text, or a LazyTranslate's, which each person reads in his own language). A method that
    overrides a declared one needs no decorator of its own.

    Another attempt does not help against a business error or a bug: UserError (with ValidationError, AccessError and
    MissingError), RedirectWarning and TypeError end the job at once, unless ``retry`` names them or a class of theirs
    that is nearer than Exception.
    """
    known = [*(field.name for field in fields(ModelAction)), "unique_until", "unique_for", "on_conflict", "public"]
    for name in options:
        if name not in known:
            raise UnsupportedOption(f"There is no option {name!r} for @action; the options are {', '.join(known)}.")
    declared = ModelAction.of(**options)
    declared = replace(declared, retry=_final_for_business_errors(declared.retry))
    if public and declared.three_step:
        raise InvalidJob(
            "public=True and three_step=True exclude each other: called over RPC, the method would only make a "
            "generator. Let a public method enqueue the action."
        )

    def declare(method):
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise InvalidJob(f"The action {method.__qualname__} is async, which nothing runs yet; write it without.")
        if inspect.isgeneratorfunction(method) != declared.three_step:
            what = "declares three_step and yields no call" if declared.three_step else "yields without three_step=True"
            raise InvalidJob(f"The action {method.__qualname__} {what}; its job would end without doing anything.")
        if declared.label:
            labels.setdefault(method.__name__, []).append(declared.label)
        return declared.declare(method if public else api.private(method))

    return declare if function is None else declare(function)


def _final_for_business_errors(retry: RetryPolicy) -> RetryPolicy:
    """Return ``retry`` with an end at once for the errors that another attempt cannot help."""
    busy = replace(retry.for_error(LockError("")), by_exception={})  # a UserError, but one that is over in a moment
    final = {UserError: GIVE_UP, LockError: busy, RedirectWarning: GIVE_UP, TypeError: GIVE_UP}
    return replace(retry, by_exception=final | dict(retry.by_exception))
