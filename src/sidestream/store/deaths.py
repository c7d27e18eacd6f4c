"""Which workers live, as PostgreSQL sees it, and what the death of one means for the jobs that it ran.

Each worker has a row, and a session lock as long as one of its sessions lives. A worker that has a row and no lock may
be dead. Whoever takes its lock then charges its jobs: a job that ran alone crashed, any other becomes a suspect. That
is written once for each job and worker, whoever finds out first: the next worker on the host, the maintenance of
another one, or the one that takes its leases over. None of it needs Redis.
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


def enter(cur: Cursor, worker: str) -> None:
    """Note that ``worker`` lives as long as this session, and until :func:`leave`; repeat it in each new session."""
    wait_for_tag(cur, _lock(worker))
    cur.execute("INSERT INTO sidestream_worker (name) VALUES (%(name)s::text) ON CONFLICT DO NOTHING", {"name": worker})


def leave(cur: Cursor, worker: str) -> None:
    """Forget ``worker``: it stopped and left nothing, or all that it left is charged."""
    cur.execute("DELETE FROM sidestream_worker WHERE name = %(name)s::text", {"name": worker})


def without_lock(cur: Cursor) -> list[str]:
    """Return the workers that entered, did not leave, and hold no lock now."""
    cur.execute("SELECT name FROM sidestream_worker ORDER BY name")
    names = [name for (name,) in cur.fetchall()]
    held = held_tags(cur) if names else set()
    return [name for name in names if _lock(name) not in held]


def lock(cur: Cursor, worker: str) -> bool:
    """Keep everybody else from charging the jobs of ``worker`` in this transaction; False when it, or one, does."""
    return lock_tag_in_transaction(cur, _lock(worker))


def charge(cur: Cursor, job_id: int, worker: str, failed: list[JobFailure] | None = None) -> CasResult:
    """Write to the row what the death of ``worker`` means, once. Call it under :func:`lock`, its sessions gone.

    A job that has failed by it is appended to ``failed``.
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
        written = outcomes.crash(cur, job_id, row.attempts, error, MAX_CRASHES, with_host=True)
        event = Event.CRASHED
    else:
        written = outcomes.suspect(cur, job_id, row.attempts)
        event, error = Event.RELEASED, ""
    if written.applied:
        attempts.record(cur, job_id, worker, -1, event, WORKER_DIED.stored())
        if written.failed and failed is not None:
            failed.append(JobFailure(job_id, row.action, row.queue, written.attempts, error))
    return written


def charge_all(cur: Cursor, worker: str, job_ids: Iterable[int], failed: list[JobFailure] | None = None) -> bool:
    """Charge these, and all that ``worker`` said to have started and not to have ended; False: some have to wait.

    Call it in a transaction. When all is written, the worker is forgotten. Jobs that have failed by it are appended to
    ``failed``.
    """
    if not lock(cur, worker):
        return False
    started = attempts.open_starts(cur, worker)
    waits = [job_id for job_id in sorted({*job_ids, *started}) if charge(cur, job_id, worker, failed).locked]
    if not waits:
        leave(cur, worker)
    return not waits


def _ran_alone(ours: list[Attempt]) -> bool:
    """Whether the last that its worker wrote of the job is that it started it alone."""
    return bool(ours) and ours[-1].event is Event.STARTED and ours[-1].reason.code is ReasonCode.ALONE


def _lock(worker: str) -> bytes:
    return tag(f"worker {worker}", 8)
