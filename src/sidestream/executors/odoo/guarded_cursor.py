"""Odoo's cursor inside a job: only the executor ends its transaction (design D5).

Made of whatever cursor class Odoo has, so that nothing here imports odoo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sidestream.broker.protocol import Publication
from sidestream.errors import CommitRefused
from sidestream.executors.session_state import leaves_state


class Guard:
    """What the running job may do with the cursor; everything is allowed between jobs."""

    def __init__(self) -> None:
        #: Name of the action that runs, or None between jobs.
        self.action: str | None = None
        #: The jobs that it enqueued: a child has no connection to Redis.
        self.follow_ups: list[Publication] | None = None
        #: Who asked for the running job: he asks for those that it enqueues, whoever it runs as.
        self.requested_by: int | None = None
        #: Something was left in the session that a rollback or commit does not take away: no other job may meet it.
        self.dirty = False
        self._part: Callable[[], None] | None = None
        self._outside = False
        self._ours = False

    def begin(
        self, action: str, follow_ups: list[Publication], requested_by: int | None, part: Callable[[], None] | None
    ) -> None:
        """A job begins; ``part`` commits a part of it, if it declared that."""
        self.action, self.follow_ups, self.requested_by, self._part = action, follow_ups, requested_by, part

    def end(self) -> None:
        """The job ended."""
        self.action = self.follow_ups = self.requested_by = self._part = None
        self._outside = False

    @contextmanager
    def outside(self) -> Iterator[None]:
        """The middle step of a three-step action: no transaction, so nothing to ask the database."""
        self._outside = True
        try:
            yield
        finally:
            self._outside = False

    def commit(self, cr: Any, commit: Callable[[Any], None]) -> None:
        """An action, or Odoo inside it, asks for a commit."""
        if self.action is None:
            commit(cr)
        elif self._part is not None and not self._ours:
            self._ours = True
            try:
                self._part()
            finally:
                self._ours = False
        else:
            raise self._refusal("commit")

    @contextmanager
    def between(self) -> Iterator[None]:
        """Between two transactions of a job: what is done now with the cursor is not the action's."""
        action, self.action = self.action, None
        try:
            yield
        finally:
            self.action = action

    def rollback(self, cr: Any) -> None:
        """Roll back for the executor."""
        with self.between():
            cr.rollback()

    def check(self, verb: str) -> None:
        """Raise :class:`~sidestream.errors.CommitRefused` when a job runs."""
        if self.action is not None:
            raise self._refusal(verb)

    def check_execute(self) -> None:
        """Raise :class:`~sidestream.errors.CommitRefused` between the transactions of a three-step action."""
        if self._outside:
            raise CommitRefused(
                f"The action {self.action!r} asked the database in its second step, which runs outside any "
                "transaction; read what the call needs in the first step."
            )

    def _refusal(self, verb: str) -> CommitRefused:
        return CommitRefused(
            f"The action {self.action!r} tried to {verb} its job's transaction, in which effect and 'done' belong "
            'together. Remove the call, or declare the action with commits="relock".'
        )


@cache
def guard_class(cursor_class: type) -> type:
    """Return ``cursor_class`` with the guard before commit, rollback, close and execute."""

    class GuardedCursor(cursor_class):  # type: ignore[misc]  # whatever Odoo's is
        """Odoo's cursor, guarded."""

        sidestream: Guard

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            """Execute, unless there is no transaction."""
            guard = self.sidestream
            guard.check_execute()
            if not guard.dirty and leaves_state(query, self):
                guard.dirty = True
            return super().execute(query, *args, **kwargs)

        def commit(self) -> None:
            """Refuse inside a job that did not declare it."""
            self.sidestream.commit(self, super().commit.__func__)

        def rollback(self) -> None:
            """Refuse inside a job."""
            self.sidestream.check("roll back")
            super().rollback()

        def close(self) -> None:
            """Refuse inside a job."""
            self.sidestream.check("close")
            super().close()

    return GuardedCursor
