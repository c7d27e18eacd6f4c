"""Acquire a row with its locks, and interpret the store's answer, for both executors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sidestream.errors import LockLost, StoreUnavailable
from sidestream.executors.protocol import Conflict, Uncertain, Verdict
from sidestream.job.job import Job, is_accused
from sidestream.job.outcome import Done, Release
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import NO_TAG8, Reference, row_reference
from sidestream.store import acquire
from sidestream.store.locks import job_lock

log = logging.getLogger(__name__)

ROW_TIMEOUT = 5.0
"""Seconds that a job waits for its row between two of its transactions."""
ROW_POLL = 0.05
"""Seconds between two attempts to lock that row."""


def session_locks(ref: Reference, *, between_transactions: bool) -> list[bytes]:
    """Return the session-level locks (8 bytes each) that a job holds beyond its transaction.

    ``between_transactions``: True for a three-step or relock job, which no other worker may run between transactions.
    """
    locks = [ref.key] if ref.key != NO_TAG8 else []
    if between_transactions:
        locks.append(job_lock(ref.id))
    return locks


def verdict_of(found: acquire.AcquireResult, ref: Reference, *, run_alone: bool) -> Verdict | None:
    """Return why the job cannot run now, or None; an accused job needs ``run_alone``.

    A database that was restored in place gives old ids to new jobs. A reference from before the restore names another
    action or key than the row does. It is settled, and the reconciler publishes the row's own reference.
    """
    match found:
        case acquire.Acquired():
            own = row_reference(ref.database, found.id, found.action, found.key, found.group, found.limit)
            if own != ref:
                log.warning(
                    "Dropped a reference to another job that had the id of job %s (%s); was the database restored?",
                    found.id,
                    found.action,
                    extra={"action": "reference_stale"},
                )
                return Done()
            return Release(Reason(ReasonCode.SUSPECT)) if is_accused(found.suspects) and not run_alone else None
        case acquire.Terminal() | acquire.Missing() | acquire.Cancelled():
            return Done()
        case acquire.NotDue():
            return Release(Reason(ReasonCode.NOT_DUE), int(found.seconds * 1000), unstarted=not found.started)
        case acquire.Blocked():
            return Release(Reason(ReasonCode.BLOCKED, {"by": found.by}), None, found.by)
        case _:
            return Release(Reason(ReasonCode.LOCKED), None)


def commit_cancellation(found: acquire.AcquireResult, commit: Callable[[], None]) -> None:
    """Commit when the statement that acquires the job cancelled it (expired, or a duplicate).

    Raises :class:`~sidestream.errors.StoreUnavailable` when the reply is lost, so that the job is acquired again.
    """
    if isinstance(found, acquire.Cancelled):
        try:
            commit()
        except Uncertain as error:
            raise StoreUnavailable(f"PostgreSQL did not confirm that a job was cancelled: {error}") from error


def acquire_again(attempt: Callable[[], acquire.AcquireResult], rollback: Callable[[], None]) -> acquire.AcquireResult:
    """Call ``attempt`` until the row is not locked, for at most ``ROW_TIMEOUT`` seconds.

    The job has made its external call or committed a part, and failing because of a short edit would repeat it.

    Args:
        attempt: Acquires the job again in a new transaction; may raise Conflict.
        rollback: Ends the transaction of an unsuccessful attempt.
    """
    deadline = time.monotonic() + ROW_TIMEOUT
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
        time.sleep(ROW_POLL)


def check_still_held(job: acquire.Acquired | Job, found: acquire.AcquireResult) -> None:
    """Raise LockLost unless the job was acquired again between its transactions."""
    if not isinstance(found, acquire.Acquired) or (found.action, found.key) != (job.action, job.key):
        raise LockLost(
            f"Job {job.id} was lost between two of its transactions ({type(found).__name__}); the rest of it did not "
            "run."
        )
