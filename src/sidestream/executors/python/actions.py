"""Declare the functions that may run as jobs. No other function ever does."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from sidestream.errors import DuplicateAction, SettingsError, UnknownAction
from sidestream.executors.application_fault import application_error
from sidestream.executors.declaration import ActionOptions, Arguments, check_fields, check_function, check_options
from sidestream.job.names import check_action, tag
from sidestream.job.observer import JobFailure
from sidestream.job.options import JobOptions
from sidestream.job.uniqueness import declared_unique

Function = TypeVar("Function", bound=Callable[..., Any])
FailureHook = TypeVar("FailureHook", bound=Callable[[JobFailure], object])


@dataclass(frozen=True, slots=True)
class ThreeSteps:
    """The functions of a three-step action: read in one transaction, call outside any, write "done" in another.

    It is for slow API calls: no row is locked and no snapshot is held while the remote service works.
    """

    #: ``read(context, *args, **kwargs)`` in a first transaction; returns the data for the call. It may not write.
    read: Callable[..., Any]
    #: ``call(context, request)`` outside any transaction; send ``context.idempotency_key(...)`` with it.
    call: Callable[..., Any]
    #: ``write(context, request, answer)`` in the transaction that commits "done".
    write: Callable[..., None]


@dataclass(frozen=True, slots=True)
class Action(ActionOptions):
    """A declared function and how it may run."""

    #: The name that rows and references carry.
    name: str
    #: Called as ``function(context, *args, **kwargs)``.
    function: Callable[..., Any]
    #: Whether the action needs the database; a direct job of an action that does not runs without one.
    database: bool = True
    #: Set for a three-step action; ``function`` is then its last step.
    steps: ThreeSteps | None = None

    def __post_init__(self) -> None:
        check_action(self.name)
        self._check_functions()
        self.check(self.name, f"action {self.name!r}", three_step=self.steps is not None)
        for option, template in self.templates():
            check_fields(self.name, option, template, self.called)

    def _check_functions(self) -> None:
        if self.steps is None:
            check_function(self.name, self.function)
            return
        check_function(self.name, self.steps.read, what="read step")
        check_function(self.name, self.steps.call, what="call step", given=1)
        check_function(self.name, self.steps.write, what="write step", given=2)

    @property
    def called(self) -> Callable[..., Any]:
        """The function that receives the job's arguments."""
        return self.function if self.steps is None else self.steps.read

    def job_options(self, args: Sequence[Any], kwargs: Mapping[str, Any], given: Collection[str]) -> JobOptions:
        """Return the action's options for these arguments, without those that the call sets.

        Raises :class:`~sidestream.errors.InvalidJob` when the arguments do not match the function, or when a template
        cannot be rendered.
        """
        found: JobOptions = {"queue": self.queue, "priority": self.priority, "expires_in": self.expires_in}
        arguments = Arguments(self.name, self.called, args, kwargs)
        if self.key is not None and "key" not in given:
            found["key"] = arguments.text("key", self.key)
        if self.limit is not None and "limit" not in given:
            found["limit"] = arguments.text("limit", self.limit)
        if self.group is not None and "group" not in given:
            found["group"] = arguments.text("group", self.group)
        if self.unique is not None and "unique" not in given:
            found["unique"] = arguments.unique(self.unique)
        return found


OPTIONS = (*(one.name for one in fields(ActionOptions)), "database")
"""The options of a declaration."""


class Actions:
    """A set of declared actions, which a worker receives as ``module:attribute``."""

    def __init__(self) -> None:
        self._by_name: dict[str, Action] = {}
        self._by_tag: dict[bytes, Action] = {}
        #: The functions that :meth:`on_failure` declared.
        self.failure_hooks: list[Callable[[JobFailure], object]] = []

    def on_failure(self, hook: FailureHook) -> FailureHook:
        """Declare the decorated function as a failure hook, which is called with each failed job.

        It runs in a separate process after the job's row is failed, at most once per job: a worker that is killed in
        between does not call it. All hooks together have :data:`~sidestream.worker.zygote.HOOK_SECONDS`; their errors
        are logged.
        """
        self.failure_hooks.append(hook)
        return hook

    def action(self, name: str, **options: Any) -> Callable[[Function], Function]:
        """Declare the function as the action ``name`` with the fields of :class:`Action`.

        ``unique="text"`` accepts ``unique_until``, ``unique_for`` and ``on_conflict`` as in a call.

        Raises :class:`~sidestream.errors.DuplicateAction` when the name, or its 4-byte tag, is taken, and
        :class:`~sidestream.errors.SettingsError` for an invalid option or function.
        """
        if not isinstance(name, str):
            raise SettingsError(
                f'@actions.action received {name!r:.80} instead of a name; write @actions.action("invoice.print"). '
                "Jobs store this name, so it must stay the same when you rename the function."
            )
        check_options(name, options, OPTIONS)

        def declare(function: Function) -> Function:
            self.add(Action(name, function, **declared_unique(name, options)))
            return function

        return declare

    def three_step(
        self,
        name: str,
        *,
        read: Callable[..., Any],
        call: Callable[..., Any],
        write: Callable[..., Any],
        **options: Any,
    ) -> None:
        """Declare a three-step action (see :class:`ThreeSteps`)."""
        check_options(name, options, OPTIONS)
        self.add(Action(name, write, steps=ThreeSteps(read, call, write), **declared_unique(name, options)))

    def add(self, action: Action) -> None:
        """Declare ``action``."""
        taken = self._by_name.get(action.name) or self._by_tag.get(tag(action.name, 4))
        if taken is not None:
            raise DuplicateAction(
                f"The action {action.name!r} is declared twice (the first one is {taken.name!r} by "
                f"{taken.function.__module__}.{taken.function.__qualname__}); rename one of them."
            )
        self._by_name[action.name] = action
        self._by_tag[tag(action.name, 4)] = action

    def get(self, name: str) -> Action:
        """Return the action ``name``; raise UnknownAction if it is not declared."""
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise UnknownAction(f"The action {name!r} is not declared; expected one of: {known}.") from None

    def by_tag(self, action_tag: bytes) -> Action | None:
        """Return the action whose 4-byte tag a reference carries, or None."""
        return self._by_tag.get(action_tag)

    def __iter__(self) -> Iterator[Action]:
        return iter(self._by_name.values())


def load_actions(path: str) -> Actions:
    """Import ``module:attribute`` and return that :class:`Actions` object.

    Raises :class:`~sidestream.errors.SettingsError` when it does not exist, and
    :class:`~sidestream.errors.ApplicationError` when the module's own code raises an error.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # including SystemExit
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise SettingsError(f"The application {path!r} cannot be imported: {error}.") from error
        raise application_error(f"The application {path!r}", error) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise SettingsError(f"The module {module_name!r} has no attribute {attribute!r}; name its Actions object.")
    if not isinstance(found, Actions):
        raise SettingsError(f"{path!r} is a {type(found).__name__}, expected a sidestream.Actions object.")
    return found
