"""Guard Odoo's cursor inside a job, where only the executor may end the transaction.

The guarded class derives from the class of the given cursor, so that this module does not import odoo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sidestream.broker.protocol import Publication
from sidestream.errors import CommitRefused
from sidestream.executors.session import leaves_state


class Guard:
    """The permissions of the running job on the cursor; between jobs, everything is allowed."""

    def __init__(self) -> None:
        #: Name of the action that runs, or None between jobs.
        self.action: str | None = None
        #: The jobs that it enqueued; the worker publishes them, because a child has no connection to Redis.
        self.follow_ups: list[Publication] | None = None
        #: The user who requested the running job, and thereby the jobs that it enqueues.
        self.requested_by: int | None = None
        #: The session was changed beyond the end of the transaction, so no other job may use it.
        self.dirty = False
        self._part: Callable[[], None] | None = None
        self._outside = False
        self._ours = False

    def begin(
        self, action: str, follow_ups: list[Publication], requested_by: int | None, part: Callable[[], None] | None
    ) -> None:
        """Begin a job; ``part`` commits a part of it, if its action declares commits."""
        self.action, self.follow_ups, self.requested_by, self._part = action, follow_ups, requested_by, part

    def end(self) -> None:
        """End the job."""
        self.action = self.follow_ups = self.requested_by = self._part = None
        self._outside = False

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Refuse statements during the middle step of a three-step action, which has no transaction."""
        self._outside = True
        try:
            yield
        finally:
            self._outside = False

    def commit(self, cr: Any, commit: Callable[[Any], None]) -> None:
        """Handle a commit that an action, or Odoo inside it, requests."""
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
        """Lift the guard between two transactions of a job, while the executor uses the cursor."""
        action, self.action = self.action, None
        try:
            yield
        finally:
            self.action = action

    def rollback(self, cr: Any) -> None:
        """Roll back on behalf of the executor."""
        with self.between():
            cr.rollback()

    def check(self, verb: str) -> None:
        """Raise :class:`~sidestream.errors.CommitRefused` while a job runs."""
        if self.action is not None:
            raise self._refusal(verb)

    def check_execute(self) -> None:
        """Raise CommitRefused between the transactions of a three-step action."""
        if self._outside:
            raise CommitRefused(
                f"The action {self.action!r} used the database in its second step, which runs outside any transaction; "
                "read the data for the call in the first step."
            )

    def _refusal(self, verb: str) -> CommitRefused:
        return CommitRefused(
            f"The action {self.action!r} tried to {verb} the transaction of its job, which must contain both its "
            'effect and "done". Remove the call, or declare the action with commits="relock".'
        )


@cache
def guarded_class(cursor_class: type) -> type:
    """Return a subclass that calls the guard before execute, commit, rollback and close."""

    class GuardedCursor(cursor_class):  # type: ignore[misc]  # its class is Odoo's
        """Odoo's cursor with a guard."""

        sidestream: Guard

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            """Execute ``query``; refuse outside a transaction."""
            guard = self.sidestream
            guard.check_execute()
            if not guard.dirty and leaves_state(query, self):
                guard.dirty = True
            return super().execute(query, *args, **kwargs)

        def commit(self) -> None:
            """Refuse inside a job whose action does not declare commits."""
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
