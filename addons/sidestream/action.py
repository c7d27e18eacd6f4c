"""``@action``: the methods that may run in the background. Nothing else ever runs."""

import inspect
from collections.abc import Callable
from typing import Any

from sidestream import InvalidJob, ModelAction


def action(function: Callable[..., Any] | None = None, /, **options: Any) -> Callable[..., Any]:
    """Declare a model's method as an action: ``@action`` or ``@action(queue="pdf", key="carrier:{carrier_id}")``.

    The options are the fields of :class:`sidestream.ModelAction`: queue, key, run_as, retry, soft_limit, hard_limit,
    commits, three_step, label. A method that overrides a declared one needs no decorator of its own.
    """
    declared = ModelAction(**options)

    def declare(method):
        if inspect.isgeneratorfunction(method) != declared.three_step:
            raise InvalidJob(
                f"The action {method.__qualname__} has a yield and no three_step=True: it would end before its first line."
                if not declared.three_step
                else f"The action {method.__qualname__} is declared with three_step=True and yields no call."
            )
        return declared.declare(method)

    return declare if function is None else declare(function)
