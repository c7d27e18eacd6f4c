"""What both executors make of a row's opening: which locks it needs, what its answer means."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sidestream.errors import LockLost, StoreUnavailable
from sidestream.executors.protocol import Conflict, Uncertain, Verdict
from sidestream.job.job import Job, is_accused
from sidestream.job.outcome import Done, Release, ReleaseReason
from sidestream.job.reference import NO_TAG8, Reference, row_reference
from sidestream.store import acquire
from sidestream.store.locks import job_lock

log = logging.getLogger(__name__)

ROW_PATIENCE = 5.0
"""Seconds for which a job between two of its transactions waits for its row."""
ROW_PAUSE = 0.05
"""Seconds between two looks at it."""


def locks_of(ref: Reference, *, between_transactions: bool) -> list[bytes]:
    """Return the session-level locks (8 bytes each) that a row's job holds beyond its transaction.

    ``between_transactions``: a three-step or relock job, which is nobody else's while it has no transaction.
    """
    locks = [ref.key] if ref.key != NO_TAG8 else []
    if between_transactions:
        locks.append(job_lock(ref.id))
    return locks


def verdict_of(found: acquire.AcquireResult, ref: Reference, *, run_alone: bool) -> Verdict | None:
    """Return why the job is not run now, or None when it is; one whose host died repeatedly only when ``run_alone``.

    A database that was restored in place gives old numbers to new jobs. A reference of before is not the row's own:
    it names another method, or locked another key. It is settled, and the reconciler publishes the row's own.
    """
    match found:
        case acquire.Acquired():
            own = row_reference(ref.database, found.id, found.action, found.key, found.group, found.limit)
            if own != ref:
                log.warning(
                    "A reference to another job that had the number of job %s (%s) is dropped; was the database "
                    "restored?",
                    found.id,
                    found.action,
                    extra={"action": "reference_stale"},
                )
                return Done()
            return Release(ReleaseReason.SUSPECT) if is_accused(found.suspects) and not run_alone else None
        case acquire.Terminal() | acquire.Missing() | acquire.Cancelled():
            return Done()
        case acquire.NotDue():
            return Release(ReleaseReason.NOT_DUE, int(found.seconds * 1000), unstarted=not found.started)
        case acquire.Blocked():
            return Release(ReleaseReason.BLOCKED, None, found.by)
        case _:
            return Release(ReleaseReason.LOCKED, None)


def commit_end(found: acquire.AcquireResult, commit: Callable[[], None]) -> None:
    """Commit when the opening itself ended the job (expired, or a duplicate); a lost reply means: look again."""
    if isinstance(found, acquire.Cancelled):
        try:
            commit()
        except Uncertain as error:
            raise StoreUnavailable(f"PostgreSQL did not say whether a job was cancelled: {error}") from error


def open_again(attempt: Callable[[], acquire.AcquireResult], rollback: Callable[[], None]) -> acquire.AcquireResult:
    """Call ``attempt`` while somebody else holds the job's row, for at most ``ROW_PATIENCE`` seconds.

    The external call was made, or a part was committed: giving up at once would repeat it for the sake of an edit.

    Args:
        attempt: Opens the job again in a transaction of its own; may raise Conflict.
        rollback: Ends the transaction of an attempt in vain.
    """
    deadline = time.monotonic() + ROW_PATIENCE
    while True:
        try:
            found = attempt()
        except Conflict:
            if time.monotonic() >= deadline:
                raise
        else:
            if not isinstance(found, acquire.Locked) or time.monotonic() >= deadline:
                return found
        rollback()
        time.sleep(ROW_PAUSE)


def check_still_ours(job: acquire.Acquired | Job, found: acquire.AcquireResult) -> None:
    """Raise :class:`~sidestream.errors.LockLost` when a job was not acquired again between its transactions."""
    if not isinstance(found, acquire.Acquired) or (found.action, found.key) != (job.action, job.key):
        raise LockLost(
            f"Job {job.id} is no longer ours between two of its transactions ({type(found).__name__}); "
            "what follows was not run."
        )
