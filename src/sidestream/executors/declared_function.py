"""What a declared function must be like, and whether the arguments of a call fit it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sidestream.errors import GiveUp, InvalidJob, SettingsError
from sidestream.job.uniqueness import SHORT_FORMS

_CONTEXT_NAMES = ("context", "ctx", "")  # "": a parameter called _
_POLICY = "retry=RetryPolicy(max_attempts=...)"
_OTHER_WORDS = {
    "retries": _POLICY,
    "max_retries": _POLICY,
    "max_attempts": _POLICY,
    "retry_policy": _POLICY,
    "timeout": "soft_limit=... or hard_limit=...",
    "soft_time_limit": "soft_limit=...",
    "time_limit": "hard_limit=...",
}


def check_options(action: str, options: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` for the first of ``options`` that no declaration has."""
    for option in options:
        if option not in known and option not in SHORT_FORMS:
            instead = f"write {_OTHER_WORDS[option]}" if option in _OTHER_WORDS else f"they are {', '.join(known)}"
            raise SettingsError(f"There is no option {option!r:.80} of an action ({action!r:.80}); {instead}.")


def check_limits(what: str, soft: object, hard: object) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` for limits of ``what`` that cannot be meant."""
    for option, limit in (("soft_limit", soft), ("hard_limit", hard)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise SettingsError(f"{option}={limit!r:.60} of {what} is not allowed: expected seconds above 0.")
    if isinstance(soft, int | float) and isinstance(hard, int | float) and hard <= soft:
        raise SettingsError(
            f"hard_limit={hard} of {what} is not above its soft_limit={soft}, so the job would be killed before it is "
            "told to stop; raise hard_limit or lower soft_limit."
        )


def check_function(action: str, function: object, *, what: str = "function", given: int | None = None) -> None:
    """Raise :class:`~sidestream.errors.SettingsError` when ``function`` cannot run as the action's ``what``.

    ``given``: how many values it is called with after the context; None when the job's arguments decide.
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
    """Return the arguments of a call, by name, behind the context; None when the function does not tell what it takes.

    Raises :class:`~sidestream.errors.InvalidJob` when they do not fit.
    """
    signature = signature_of(function)
    if signature is None:
        return None
    try:
        return signature.bind(None, *args, **kwargs)  # None: the context
    except TypeError as error:
        raise InvalidJob(
            f"The arguments for action {action!r} do not fit its function: {error}; it is "
            f"{getattr(function, '__name__', 'called')}{signature}."
        ) from None


def call(action: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of ``action`` and return its answer.

    Raises :class:`~sidestream.errors.GiveUp` when the arguments do not fit, or the answer shows that nothing ran: no
    attempt changes that.
    """
    try:
        answer = function(*args, **kwargs)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # the function was entered: it is an error of its own
        raise GiveUp(f"The arguments of this job do not fit the function of action {action!r}: {error}") from error
    if inspect.iscoroutine(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if not inspect.isasyncgen(answer):
            answer.close()
        raise GiveUp(
            f"The action {action!r} returned {type(answer).__name__}, of which nothing ran; expected a plain function "
            "(def, without yield)."
        )
    return answer


@lru_cache(maxsize=4096)
def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return what ``function`` takes; None when it does not tell (some that are written in C)."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _kind_of(function: Callable[..., Any]) -> str | None:
    """Return what a function is whose code does not run when it is called; None for a plain one."""
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
