"""What a declared function gives its jobs where the call is silent: texts made of the job's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sidestream.errors import InvalidJob, SettingsError
from sidestream.executors.declared_function import bind_arguments, signature_of
from sidestream.job.job import Unique
from sidestream.job.template import fields_of, render_template
from sidestream.job.uniqueness import with_key

Text = str | Callable[..., str | None] | None
"""A text with the function's arguments in braces, or a function of them; None: nothing."""


def check_fields(action: str, what: str, template: Text, function: Callable[..., Any]) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` when ``template`` names what is no argument of ``function``."""
    if not isinstance(template, str):
        return
    known = _arguments(function)
    for field in fields_of(f"{what} of action {action!r}", template):
        if known is not None and field not in known:
            raise SettingsError(
                f"The {what} {template!r:.80} of action {action!r} names {field!r}, which is no argument of it; its "
                f"arguments are {', '.join(known) or 'none'}."
            )


class Arguments:
    """The arguments of one call, by name. Raises :class:`~sidestream.errors.InvalidJob` when they do not fit."""

    def __init__(self, action: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]):
        self._action = action
        self._bound = bind_arguments(action, function, args, kwargs)
        self._args = args
        self._kwargs = kwargs
        self._by_name: dict[str, Any] | None = None

    def text(self, what: str, template: Text) -> str | None:
        """Return the text for this call; raise :class:`~sidestream.errors.InvalidJob` when an argument has none."""
        if template is None or isinstance(template, str):
            return template and render_template(
                f"{what} of action {self._action!r}", template, lambda field: self._value(what, template, field)
            )
        return template(*self._args, **self._kwargs)

    def unique(self, unique: Unique | Text) -> Unique | str | None:
        """Return the unique for this call."""
        if isinstance(unique, Unique):
            key = self.text("unique", unique.key)
            return None if key is None else with_key(unique, key)
        return self.text("unique", unique)

    def _value(self, what: str, template: str, field: str) -> str:
        if self._by_name is None:
            self._by_name = self._bind()
        if field not in self._by_name:
            raise InvalidJob(
                f"The {what} {template!r:.80} of action {self._action!r} names {field!r}, which this call does not "
                f"give; it gives {', '.join(self._by_name) or 'nothing'}."
            )
        value = self._by_name[field]
        if value is None:
            return "none"
        if not isinstance(value, str | int | float):
            raise InvalidJob(
                f"The {what} {template!r:.80} of action {self._action!r} needs a text or a number for {field!r}, and "
                f"this call gives a {type(value).__name__}."
            )
        return str(value)

    def _bind(self) -> dict[str, Any]:
        bound = self._bound
        if bound is None:
            return dict(self._kwargs)
        bound.apply_defaults()
        found = dict(list(bound.arguments.items())[1:])
        for parameter in bound.signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                found |= found.pop(parameter.name, {})
        return found


def _arguments(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the names of a function's arguments behind its context; None when it takes any."""
    signature = signature_of(function)
    if signature is None:
        return None
    parameters = list(signature.parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters[1:])
