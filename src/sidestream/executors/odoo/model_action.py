"""Define the options of ``@action``, and find declared methods in a registry.

The addon creates these values and the Odoo executor collects them. This module does not import odoo.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sidestream.errors import ActionError, InvalidName, SettingsError
from sidestream.executors.declaration import ActionOptions
from sidestream.job import uniqueness
from sidestream.job.names import check_action, tag
from sidestream.job.template import fields_of

log = logging.getLogger(__name__)

MARK = "_sidestream_action"
"""Attribute of a function that holds its declaration; an override needs no decorator of its own."""
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ModelAction(ActionOptions):
    """A declared method of a model and how it may run."""

    #: "user": the user who enqueued it, without superuser rights; "superuser"; or the xml id of a service user.
    run_as: str = "user"
    #: The method is a generator; the function that it yields is called with an idempotency key outside any transaction.
    three_step: bool = False
    #: Name for people: text, or Odoo's lazy translation; None: derived from the method's name.
    label: Any = None

    def __post_init__(self) -> None:
        self.check("@action", "an action", three_step=self.three_step)
        for option, template in self.templates():
            if isinstance(template, str):
                fields_of(f"{option} of an @action", template)
        if self.run_as not in ("user", "superuser") and "." not in self.run_as:
            raise SettingsError(
                f"run_as={self.run_as!r} of an action: expected 'user', 'superuser' or the xml id of a user "
                "(module.name)."
            )

    @classmethod
    def of(cls, **options: Any) -> ModelAction:
        """Return the declaration; ``unique="text"`` accepts the same further options as in a call."""
        return cls(**uniqueness.declared_unique("@action", options))

    def declare(self, function: Function) -> Function:
        """Mark ``function`` as declared."""
        setattr(function, MARK, self)
        return function

    def steps_of(self, name: str, answer: object) -> Generator[Any, Any, Any] | None:
        """Return the three steps that the method returned; None when the action has only one.

        Overrides are not checked at declaration. Raises :class:`~sidestream.errors.ActionError` when the override is
        async, or when it yields although the action does not declare three steps, or the reverse.
        """
        if inspect.iscoroutine(answer) or inspect.isasyncgen(answer):
            if inspect.iscoroutine(answer):
                answer.close()  # otherwise Python warns that it was never awaited
            raise ActionError(
                f"The action {name!r} returned a {type(answer).__name__}, so none of its code ran; expected a method "
                "that is not async: write the override without async."
            )
        steps = answer if inspect.isgenerator(answer) else None
        if (steps is not None) == self.three_step:
            return steps
        if self.three_step:
            raise ActionError(
                f"The three-step action {name!r} returned {answer!r:.60}; expected a method that yields its call: let "
                "the override yield one, or return super()'s."
            )
        raise ActionError(
            f"The action {name!r} returned a generator, so none of its code ran; expected a method without yield: take "
            "it out of the override, or declare the override with @action(three_step=True)."
        )


def declared(model: type, method: str) -> ModelAction | None:
    """Return the declaration of a model class's method, or of the method that it overrides."""
    for base in model.__mro__:
        found = getattr(base.__dict__.get(method), MARK, None)
        if isinstance(found, ModelAction):
            return found
    return None


def collect(registry: Mapping[str, type]) -> dict[str, ModelAction]:
    """Return every declared method of a registry's models by its name ``model.method``.

    Leaves out, and logs, an action with an invalid name, and actions whose names have the same tag.
    """
    found: dict[str, ModelAction] = {}
    by_tag: dict[bytes, list[str]] = {}
    for model, cls in registry.items():
        for method in _marked(cls.__mro__):
            try:
                name = check_action(f"{model}.{method}")
            except InvalidName as error:
                log.error("This worker does not serve an action: %s", error, extra={"action": "action_refused"})
                continue
            action = declared(cls, method)
            assert action is not None
            by_tag.setdefault(tag(name, 4), []).append(name)
            found[name] = action
    for names in by_tag.values():
        if len(names) > 1:  # a reference could mean each of them
            log.error(
                "This worker does not serve actions that have the same tag: %s; rename one of them.",
                " and ".join(sorted(names)),
                extra={"action": "action_refused"},
            )
            for name in names:
                del found[name]
    return found


def _marked(bases: Iterable[type]) -> set[str]:
    return {name for base in bases for name, value in base.__dict__.items() if hasattr(value, MARK)}
