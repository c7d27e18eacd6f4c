"""Check a declaration of an action: its function, its options, and the arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from sidestream.errors import GiveUp, InvalidJob, SettingsError
from sidestream.job import uniqueness
from sidestream.job.job import DEFAULT_PRIORITY, DEFAULT_QUEUE, Unique
from sidestream.job.moments import seconds_of
from sidestream.job.names import check_priority, check_queue
from sidestream.job.retry import RetryPolicy, policy_of
from sidestream.job.template import fields_of, render_template
from sidestream.job.uniqueness import SHORT_FORMS

Text = str | Callable[..., str | None] | None
"""A text with the function's arguments in braces, a function of the arguments, or None."""
_CONTEXT_NAMES = ("context", "ctx", "")  # "": a parameter called _
_POLICY = "retry=RetryPolicy(max_attempts=...)"
_OTHER_NAMES = {
    "retries": _POLICY,
    "max_retries": _POLICY,
    "max_attempts": _POLICY,
    "retry_policy": _POLICY,
    "timeout": "soft_limit=... or hard_limit=...",
    "soft_time_limit": "soft_limit=...",
    "time_limit": "hard_limit=...",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionOptions:
    """How the jobs of a declared action may run; the same for functions and for methods of models.

    A text may name, in braces, arguments of the function or fields of the method's record ("order:{order_id}"). A
    function instead of a text receives the arguments, or the recordset.
    """

    #: Queue of its jobs, unless the call names another one.
    queue: str = DEFAULT_QUEUE
    #: Ordering key of its jobs: a text, or a function; None: no order.
    key: Text = None
    #: Limit key of its jobs, in the same form: ``rule`` or ``rule:value`` ("courier:{carrier_id}").
    limit: Text = None
    #: Fairness group of its jobs (the tenant), in the same form; None: in Odoo, the company in which it is enqueued.
    group: Text = None
    #: Key that makes a second job a duplicate, in the same form, or a :class:`~sidestream.job.job.Unique` with one.
    unique: Unique | str | Callable[..., Unique | str | None] | None = None
    #: 0 (first) to 9 within the queue.
    priority: int = DEFAULT_PRIORITY
    #: Seconds after its due time at which a job that has not started is cancelled; None means never.
    expires_in: float | None = None
    #: The policy for failed attempts, or one for each class of exceptions.
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    #: Seconds until :class:`~sidestream.errors.SoftLimitExceeded` is raised inside the job; None means never.
    soft_limit: float | None = None
    #: Seconds until the job's process is killed; None means the worker's own limit.
    hard_limit: float | None = None
    #: "forbid": commit and rollback are refused. "relock": a commit locks and checks the job again. A function calls
    #: ``context.commit()``, a method ``self.env.cr.commit()``.
    commits: Literal["forbid", "relock"] = "forbid"

    def check(self, name: str, what: str, *, three_step: bool) -> None:
        """Raise :class:`~sidestream.errors.SettingsError` or InvalidName when an option of ``what`` is wrong."""
        check_queue(self.queue)
        check_priority(self.priority)
        object.__setattr__(self, "retry", policy_of(name, self.retry))
        if self.expires_in is not None:
            seconds_of(name, "expires_in", self.expires_in, least="above 0")
        if isinstance(self.unique, Unique):
            uniqueness.check(name, self.unique)
        check_limits(what, self.soft_limit, self.hard_limit)
        if self.commits not in ("forbid", "relock"):
            raise SettingsError(f"commits={self.commits!r} of {what}: expected 'forbid' or 'relock'.")
        if three_step and self.commits == "relock":
            raise SettingsError(f"commits='relock' of {what}, which has three steps: its steps commit; leave it out.")

    def templates(self) -> Iterator[tuple[str, object]]:
        """Yield the option and what it holds for each that may be a text."""
        unique = self.unique.key if isinstance(self.unique, Unique) else self.unique
        yield from (("key", self.key), ("limit", self.limit), ("group", self.group), ("unique", unique))


def check_options(action: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` for the first unknown name in ``options``."""
    for option in options:
        if option not in known and option not in SHORT_FORMS:
            remedy = f"write {_OTHER_NAMES[option]}" if option in _OTHER_NAMES else f"expected {', '.join(known)}"
            raise SettingsError(f"There is no option {option!r:.80} (action {action!r:.80}); {remedy}.")


def check_limits(what: str, soft: object, hard: object) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` for invalid time limits of ``what``."""
    for option, limit in (("soft_limit", soft), ("hard_limit", hard)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise SettingsError(f"{option}={limit!r:.60} of {what} is not allowed: expected seconds above 0.")
    if isinstance(soft, int | float) and isinstance(hard, int | float) and hard <= soft:
        raise SettingsError(
            f"hard_limit={hard} of {what} is not above its soft_limit={soft}, so the job would be killed before its "
            "soft limit takes effect; raise hard_limit or lower soft_limit."
        )


def check_function(action: str, function: object, *, what: str = "function", given: int | None = None) -> None:
    """Raise SettingsError if ``function`` cannot run as the action's ``what``.

    ``given``: number of arguments after the context; None when the job determines it.
    """
    where = f"The {what} of action {action!r:.80}"
    if not callable(function):
        raise SettingsError(f"{where} is {function!r:.60}; expected a function.")
    if (kind := _kind_of(function)) is not None:
        raise SettingsError(f"{where} is {kind}, whose code would never run; expected a plain function (def).")
    signature = signature_of(function)
    if signature is None:
        return
    shown = f"{getattr(function, '__name__', what)}{signature}"
    if not _takes_context(signature):
        raise SettingsError(f"{where} is {shown}; expected the job's context as its first parameter: (context, ...).")
    if given is not None:
        try:
            signature.bind(*[None] * (given + 1))
        except TypeError:
            values = ("context", "request", "answer")[: given + 1]
            raise SettingsError(f"{where} is {shown}; it is called with ({', '.join(values)}).") from None


def bind_arguments(
    action: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments | None:
    """Bind a call's arguments to the function's parameters; None if its signature is unknown.

    Raises :class:`~sidestream.errors.InvalidJob` when they do not match.
    """
    signature = signature_of(function)
    if signature is None:
        return None
    try:
        return signature.bind(None, *args, **kwargs)  # None: the context, or self
    except TypeError as error:
        raise InvalidJob(
            f"The arguments of action {action!r} do not match its function: {error}; expected "
            f"{getattr(function, '__name__', '')}{signature}."
        ) from None


def call(action: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of ``action`` and return its result.

    Raises :class:`~sidestream.errors.GiveUp` when the arguments do not match, or the result shows that nothing ran,
    because another attempt would not change that.
    """
    try:
        answer = function(*args, **kwargs)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # the function itself raised it
        raise GiveUp(f"The arguments of this job do not match the function of action {action!r}: {error}") from error
    if inspect.iscoroutine(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if not inspect.isasyncgen(answer):
            answer.close()
        raise GiveUp(
            f"The action {action!r} returned a {type(answer).__name__}, so none of its code ran; expected a plain "
            "function (def, without yield)."
        )
    return answer


@lru_cache(maxsize=4096)
def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of ``function``; None when it has none (some functions written in C)."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _kind_of(function: Callable[..., Any]) -> str | None:
    """Return the kind of a function that does not run when called; None for a plain one."""
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004  # the method itself is wanted
        if inspect.iscoroutinefunction(candidate):
            return "an async function"
        if inspect.isasyncgenfunction(candidate):
            return "an async generator"
        if inspect.isgeneratorfunction(candidate):
            return "a generator (it has a yield)"
    return None


def _takes_context(signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        return False
    if first.kind is inspect.Parameter.VAR_POSITIONAL:
        return True
    annotation = getattr(first.annotation, "__name__", first.annotation)
    named = first.name.lstrip("_") in _CONTEXT_NAMES
    return named or (isinstance(annotation, str) and annotation.strip("'\"").rpartition(".")[2] == "Context")


def check_fields(action: str, what: str, template: object, function: Callable[..., Any]) -> None:
    """Raise SettingsError if ``template`` names an unknown argument of ``function``."""
    if not isinstance(template, str):
        return
    known = _arguments(function)
    for name in fields_of(f"{what} of action {action!r}", template):
        if known is not None and name not in known:
            raise SettingsError(
                f"The {what} {template!r:.80} of action {action!r} names {name!r}, which is not an argument of it; "
                f"its arguments are {', '.join(known) or 'none'}."
            )


class Arguments:
    """The arguments of one call, by name. Raises InvalidJob if they do not match."""

    def __init__(self, action: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]):
        self._action = action
        self._bound = bind_arguments(action, function, args, kwargs)
        self._args = args
        self._kwargs = kwargs
        self._by_name: dict[str, Any] | None = None

    def text(self, what: str, template: Text) -> str | None:
        """Render ``template`` for this call; raise InvalidJob if that fails."""
        if template is None or isinstance(template, str):
            return template and render_template(
                f"{what} of action {self._action!r}", template, lambda field: self._value(what, template, field)
            )
        return template(*self._args, **self._kwargs)

    def unique(self, unique: Unique | str | Callable[..., Unique | str | None] | None) -> Unique | str | None:
        """Return the uniqueness of this call."""
        if isinstance(unique, Unique):
            key = self.text("unique", unique.key)
            return None if key is None else replace(unique, key=key)
        return unique(*self._args, **self._kwargs) if callable(unique) else self.text("unique", unique)

    def _value(self, what: str, template: str, field: str) -> str:
        if self._by_name is None:
            self._by_name = self._bind()
        if field not in self._by_name:
            raise InvalidJob(
                f"The {what} {template!r:.80} of action {self._action!r} names {field!r}, which this call does not "
                f"pass; it passes {', '.join(self._by_name) or 'nothing'}."
            )
        value = self._by_name[field]
        if value is None:
            return "none"
        if not isinstance(value, str | int | float):
            raise InvalidJob(
                f"The {what} {template!r:.80} of action {self._action!r} needs a text or a number for {field!r}, but "
                f"this call passes a {type(value).__name__}."
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
    """Return the names of a function's arguments after the context; None when it accepts any."""
    signature = signature_of(function)
    if signature is None:
        return None
    parameters = list(signature.parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return tuple(parameter.name for parameter in parameters[1:])
