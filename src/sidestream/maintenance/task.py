"""What a task is, and the one thread that runs all maintenance of a worker."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from sidestream.errors import BrokerError, StaleGeneration, StoreError

log = logging.getLogger(__name__)


JITTER = (0.9, 1.1)
"""Between which shares of its usual time a pause is, so that workers that were started together do not stay in step."""


class MaintenanceTask(Protocol):
    """One kind of background step.

    All tasks have one shape: a docstring that names the settings with their defaults, a constructor that takes the
    parts and then times as keywords, checked by :func:`check_times`, and one verb, ``step``.
    """

    #: Its name in logs and for :meth:`MaintenanceThread.poke`.
    name: str
    #: Seconds from the end of one step to the next.
    every: float

    def step(self) -> bool:
        """Do a bounded amount of work that may be repeated without harm; return whether more can be done at once."""
        ...


def check_times(task: str, **seconds: float) -> None:
    """Raise ValueError unless each of these times of the task named ``task`` is a finite number of seconds above 0."""
    for name, value in seconds.items():
        if not 0 < value < math.inf:
            raise ValueError(f"The maintenance task {task!r} has {name}={value}; expected a number of seconds above 0.")


class MaintenanceThread:
    """Runs each task when it is due, one at a time.

    A server that is away (any BrokerError or StoreError) is logged once when the first task meets it, and once when
    the last one that met it works again; meanwhile each is tried at its usual times. Another error of a task is logged
    when it first occurs and when the task works again.
    """

    def __init__(self, maintenance: Sequence[MaintenanceTask]) -> None:
        for task in maintenance:
            check_times(task.name, every=task.every)
        self._maintenance = {task.name: task for task in maintenance}
        self._changed = threading.Condition()
        self._stopping = False
        #: When each is due next; a busy one is due again behind those that fell due meanwhile, so it starves nobody.
        self._due = dict.fromkeys(self._maintenance, time.monotonic())
        #: Which tasks meet an outage now, by the server that is away.
        self._meeting: dict[str, set[str]] = {"broker": set(), "store": set()}
        #: The error that each task failed with last.
        self._failing: dict[str, str] = {}
        self._thread = threading.Thread(target=self._run, name="sidestream-maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread; every task is due at once."""
        self._thread.start()

    def poke(self, name: str) -> None:
        """Make the task ``name`` due now; without such a task (no database: no reconciler) do nothing."""
        with self._changed:
            if name in self._due:
                self._due[name] = time.monotonic()
                self._changed.notify_all()

    def stop(self, timeout: float = 5.0) -> bool:
        """Ask the thread to end after the step it is in; return whether it ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (name := self._next()) is not None:
            more = self._step(self._maintenance[name])
            with self._changed:
                pause = 0.0 if more else self._maintenance[name].every * random.uniform(*JITTER)
                # A poke during the step made it due already.
                self._due[name] = min(self._due[name], time.monotonic() + pause)

    def _next(self) -> str | None:
        """Wait until a task is due; return its name, or None to end."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                name = min(self._due, key=self._due.__getitem__, default=None)
                if name is not None and self._due[name] <= now:
                    self._due[name] = math.inf
                    return name
                self._changed.wait(None if name is None else self._due[name] - now)
        return None

    def _step(self, task: MaintenanceTask) -> bool:
        try:
            more = task.step()
        except StaleGeneration:
            # Not an outage: the reconciler looks at the generation in its next step, and so does everybody else.
            return False
        except (BrokerError, StoreError) as error:
            self._met(task.name, "store" if isinstance(error, StoreError) else "broker", error)
            return False
        except Exception as error:  # a bug in one task must not stop the others
            if self._failing.get(task.name) != (said := repr(error)):
                self._failing[task.name] = said
                log.error(
                    "The maintenance task %r failed and is repeated at its usual times: %s",
                    task.name,
                    error,
                    exc_info=error,
                    extra={"action": "maintenance_failed"},
                )
            return False
        self._worked(task.name)
        return more

    def _met(self, name: str, server: str, error: Exception) -> None:
        first = not self._meeting[server]
        self._meeting[server].add(name)
        if first:
            log.warning(
                "The maintenance task %r waits for the %s: %s",
                name,
                server,
                error,
                extra={"action": "maintenance_waits", "task": name},
            )

    def _worked(self, name: str) -> None:
        if self._failing.pop(name, None):
            log.info("The maintenance task %r works again.", name, extra={"action": "maintenance_works"})
        for server, names in self._meeting.items():
            if name in names:
                names.discard(name)
                if not names:
                    log.info("Maintenance reaches the %s again.", server, extra={"action": "maintenance_resumed"})
