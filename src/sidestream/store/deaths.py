"""Record which workers live, and charge the jobs of a dead one. This does not need Redis.

Each worker has a row, and a session lock as long as one of its sessions lives. A worker that has a row and no lock may
be dead. The session that takes its lock then charges its jobs: a job that ran alone crashed, any other becomes a
suspect. This is written once per job and worker, by whichever finds out first: the next worker on the host, the
maintenance of another worker, or the lease reclaimer.
"""

from __future__ import annotations

from collections.abc import Iterable

from sidestream.job.job import MAX_CRASHES
from sidestream.job.names import tag
from sidestream.job.observer import JobFailure
from sidestream.job.reason import Reason, ReasonCode
from sidestream.store import attempts, outcomes, queries
from sidestream.store.attempts import Attempt, Event
from sidestream.store.compare_and_set import CasResult
from sidestream.store.cursor import Cursor
from sidestream.store.locks import held_tags, lock_tag_in_transaction, wait_for_tag

WORKER_DIED = Reason(ReasonCode.WORKER_DIED)
"""Detail of the attempt row that charges a job in the name of the dead worker."""

# Writes the row of a worker. Waits for a session that writes the same one.
_ENTER = "INSERT INTO sidestream_worker (name) VALUES (%(name)s::text) ON CONFLICT DO NOTHING"
_LEAVE = "DELETE FROM sidestream_worker WHERE name = %(name)s::text RETURNING true"
# Returns the names of all workers; the table is small.
_WORKERS = "SELECT name FROM sidestream_worker ORDER BY name"


def enter(cur: Cursor, worker: str) -> None:
    """Record that ``worker`` lives as long as this session; repeat it in each new session."""
    wait_for_tag(cur, _lock(worker))
    cur.execute(_ENTER, {"name": worker})


def leave(cur: Cursor, worker: str) -> bool:
    """Delete ``worker``: it stopped and left no job, or all its jobs are charged. Return whether it was there."""
    cur.execute(_LEAVE, {"name": worker})
    return cur.fetchone() is not None


def without_lock(cur: Cursor) -> list[str]:
    """Return the workers that have a row and hold no lock."""
    cur.execute(_WORKERS)
    names = [name for (name,) in cur.fetchall()]
    return sorted({*names} - living(cur, names))


def living(cur: Cursor, names: Iterable[str]) -> set[str]:
    """Return which of these workers hold their locks."""
    held = held_tags(cur)
    return {name for name in names if _lock(name) in held}


def lock(cur: Cursor, worker: str) -> bool:
    """Reserve the charging of ``worker``'s jobs; False if it lives or another session has it."""
    return lock_tag_in_transaction(cur, _lock(worker))


def charge(cur: Cursor, job_id: int, worker: str, failed: list[JobFailure] | None = None) -> CasResult:
    """Charge one job once for the death of ``worker``, under :func:`lock`.

    If the job fails, it is appended to ``failed``.
    """
    found = queries.job(cur, job_id)
    if found is None:
        return CasResult(applied=False, state=None)
    row, _, history = found
    ours = [attempt for attempt in history if attempt.worker == worker]
    if any(attempt.reason == WORKER_DIED for attempt in ours):
        return CasResult(applied=False, state=row.state, attempts=row.attempts)
    if _ran_alone(ours):
        error = f"It crashed: the worker {worker} died while it ran there alone."
        most = int(ours[-1].reason.params.get("max_attempts", outcomes.NO_MOST))
        written = outcomes.crash(cur, job_id, row.attempts, error, MAX_CRASHES, max_attempts=most, with_host=True)
        event = Event.CRASHED
    else:
        written = outcomes.suspect(cur, job_id, row.attempts)
        event, error = Event.RELEASED, ""
    if written.applied:
        attempts.record(cur, job_id, worker, -1, event, WORKER_DIED.stored())
        if written.failed and failed is not None:
            failed.append(JobFailure(job_id, row.action, row.queue, written.attempts, error))
    return written


def charge_all(cur: Cursor, worker: str, job_ids: Iterable[int], failed: list[JobFailure] | None = None) -> bool | None:
    """Charge these jobs and all that ``worker`` was running; None if some rows are locked.

    Call it in a transaction, and repeat it after None. Otherwise the worker has no row any more; False if it had none
    before. Jobs that fail are appended to ``failed``.
    """
    if not lock(cur, worker):
        return None
    started = attempts.unfinished(cur, worker)
    waits = [job_id for job_id in sorted({*job_ids, *started}) if charge(cur, job_id, worker, failed).locked]
    return None if waits else leave(cur, worker)


def _ran_alone(ours: list[Attempt]) -> bool:
    """Return whether the last attempt row of its worker says that it started the job alone."""
    return bool(ours) and ours[-1].event is Event.STARTED and ours[-1].reason.code is ReasonCode.ALONE


def _lock(worker: str) -> bytes:
    return tag(f"worker {worker}", 8)
