"""Log a trouble when it begins and when it ends, instead of at every attempt."""

from __future__ import annotations

import logging
import time


class Troubles:
    """The troubles of one thread, each logged once."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        #: Since when (monotonic), by kind.
        self._since: dict[str, float] = {}

    def met(self, kind: str, message: str, *args: object, level: int = logging.WARNING) -> None:
        """Log ``message`` unless this kind of trouble is known already."""
        if kind not in self._since:
            self._since[kind] = time.monotonic()
            self._log.log(level, message, *args, extra={"action": kind})

    def over(self, kind: str, what: str) -> None:
        """Log that ``what`` works again, if it did not."""
        since = self._since.pop(kind, None)
        if since is not None:
            self._log.info("%s again after %.1f s.", what, time.monotonic() - since, extra={"action": f"{kind}_over"})
