"""``@action``: the methods that may run in the background. Nothing else ever runs."""

from collections.abc import Callable
from typing import Any

from sidestream import ModelAction


def action(function: Callable[..., Any] | None = None, /, **options: Any) -> Callable[..., Any]:
    """Declare a model's method as an action: ``@action`` or ``@action(queue="pdf", key="carrier:{carrier_id}")``.

    The options are the fields of :class:`sidestream.ModelAction`: queue, key, run_as, retry, soft_limit, hard_limit,
    commits, three_step, label. A method that overrides a declared one needs no decorator of its own.
    """
    declared = ModelAction(**options)
    return declared.declare if function is None else declared.declare(function)
