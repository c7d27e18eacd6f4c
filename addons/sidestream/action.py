"""``@action``: the methods that may run in the background. Nothing else ever runs."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sidestream import InvalidJob, ModelAction, UnsupportedOption

labels: dict[str, list[Any]] = {}
"""What people read of the declared methods, by the method's name: so that a list can be searched for it."""


def action(function: Callable[..., Any] | None = None, /, **options: Any) -> Callable[..., Any]:
    """Declare a model's method as an action: ``@action`` or ``@action(queue="pdf", key="carrier:{carrier_id}")``.

    The options are the fields of :class:`sidestream.ModelAction`: queue, priority, key, limit, group, unique (with
    unique_until, unique_for, on_conflict), expires_in, run_as, retry, soft_limit, hard_limit, commits, three_step,
    label (a text, or a LazyTranslate's, which each person reads in his own language). A method that overrides a
    declared one needs no decorator of its own.
    """
    known = [*(field.name for field in fields(ModelAction)), "unique_until", "unique_for", "on_conflict"]
    for name in options:
        if name not in known:
            raise UnsupportedOption(f"There is no option {name!r} for @action; the options are {', '.join(known)}.")
    declared = ModelAction.of(**options)

    def declare(method):
        if inspect.isgeneratorfunction(method) != declared.three_step:
            what = "declares three_step and yields no call" if declared.three_step else "yields without three_step=True"
            raise InvalidJob(f"The action {method.__qualname__} {what}; its job would end without doing anything.")
        if declared.label:
            labels.setdefault(method.__name__, []).append(declared.label)
        return declared.declare(method)

    return declare if function is None else declare(function)
