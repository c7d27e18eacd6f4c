"""The settings that a supervisor starts with. Durations are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The settings of one supervisor; :mod:`sidestream.settings` explains each for users."""

    #: Who we are towards Redis and PostgreSQL: unique for each start.
    worker: str
    #: The lanes that are served (see :func:`sidestream.broker.protocol.lane`).
    lanes: tuple[str, ...]
    #: Folder of this supervisor alone: slots and lock file.
    run_folder: Path
    #: Child processes.
    children: int = 2
    #: A delivery that is not renewed for this long may be reclaimed.
    lease: float = 15.0
    #: Seconds between two renewals.
    renew_interval: float = 3.0
    #: Kill a job that runs longer, unless its action declares its own.
    hard_limit: float = 1800.0
    #: How long a drain waits for running jobs.
    drain_timeout: float = 30.0
    #: Most measured work that is held for each child in advance.
    prefetch: float = 0.1
    #: Most measured work that is sent to a child in one message.
    batch: float = 0.01
    #: How long after an unclean end jobs run one at a time.
    recovery_period: float = 60.0
    #: Whether the last supervisor on this host ended uncleanly.
    after_unclean_end: bool = False


def application_name(worker: str, slot: int | str) -> str:
    """Return the application name by which the lease reclaimer finds a session of ``worker``."""
    return f"sidestream/{worker}/{slot}"
