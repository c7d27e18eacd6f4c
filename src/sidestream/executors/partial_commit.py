"""Commit an action in parts, and stop after a part that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PartialCommits:
    """The transactions of one job. After a failed commit, nothing more of the job is committed.

    The exception is raised by the action's own ``commit()``, and the action may catch it. Without this class it would
    continue to write a job that it no longer holds.
    """

    def __init__(self) -> None:
        self._failure: BaseException | None = None

    @contextmanager
    def boundary(self) -> Iterator[None]:
        """End one transaction and begin the next inside the block; first raise an earlier failure."""
        self.check()
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def check(self) -> None:
        """Raise the failure of an earlier boundary, if there was one."""
        if self._failure is not None:
            raise self._failure
