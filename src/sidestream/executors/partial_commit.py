"""An action that commits in parts: what holds after a part that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Parts:
    """The transactions of one job. After one that could not be ended, or begun, nothing more of it is committed.

    The exception comes out of the action's own ``commit()``, and the action may make of it what it likes: without this
    it would go on to write what is not its own any more.
    """

    def __init__(self) -> None:
        self._failure: BaseException | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """End one transaction and begin the next; raise what an earlier turn raised."""
        self.check()
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise

    def check(self) -> None:
        """Raise what a turn raised."""
        if self._failure is not None:
            raise self._failure
