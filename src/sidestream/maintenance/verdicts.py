"""Decide what happens to deliveries whose leases ran out, and charge the rows of jobs whose worker died."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from sidestream.broker.protocol import Delivery
from sidestream.errors import StoreError
from sidestream.job.job import MAX_CRASHES
from sidestream.job.observer import JobFailure
from sidestream.job.reference import NO_TAG8, Reference
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.maintenance.worker_deaths import end_sessions
from sidestream.store import deaths, sessions
from sidestream.store.compare_and_set import CasResult
from sidestream.store.locks import job_lock

log = logging.getLogger(__name__)


class Verdict(Enum):
    """What to do with a delivery in the broker, once its row is written."""

    GIVE_BACK = "give back"
    CHARGE_CRASH = "give back with a crash"
    FAIL = "fail"
    SETTLE = "settle"


@dataclass(slots=True, eq=False)
class Taken:
    """A delivery that we took over."""

    delivery: Delivery
    #: None when its bytes cannot be read.
    reference: Reference | None
    #: Who lost it.
    owner: str
    #: Monotonic time at which we took it.
    since: float
    #: Decided once, however often the broker call has to be repeated.
    verdict: Verdict | None = None


def give_back(some: Iterable[Taken]) -> None:
    """Decide that no job of these is charged."""
    for one in some:
        one.verdict = Verdict.GIVE_BACK


def end_runs(store: StoreConnection, owner: str, lost: Sequence[Taken]) -> None:
    """End the sessions in which a live worker ran these rows, so that they are free; raise StoreError.

    It has killed their children or is about to: at their hard limit, or because it lost their leases. But it may not
    reach PostgreSQL to end their sessions, which then hold the row, the key, or the lock between two transactions.
    """
    with store.cursor("ending the sessions of lost jobs") as cursor:
        for reference in [one.reference for one in lost if one.reference is not None and not one.reference.direct]:
            locks = [job_lock(reference.id), reference.key] if reference.key != NO_TAG8 else [job_lock(reference.id)]
            if sessions.terminate_holders(cursor, owner, reference.id, locks):
                said = "The worker %s no longer runs job %s; its PostgreSQL session was ended."
                log.warning(said, owner, reference.id, extra={"action": "session_ended", "job_id": reference.id})


def charge_rows(
    store: StoreConnection, owner: str, lost: Sequence[Taken], running: frozenset[bytes] | None
) -> list[JobFailure]:
    """Free the rows of a dead worker, charge those that may have killed it, and decide; return the jobs that failed.

    A delivery whose row another session holds stays undecided, and all do when a StoreError is raised.
    """
    end_sessions(store, owner)
    ran = [(one, one.reference.id) for one in lost if one.reference and may_have_run(one.delivery, running)]
    failed: list[JobFailure] = []
    if ran:
        with store.transaction("charging the jobs of a dead worker") as cursor:
            if not deaths.lock(cursor, owner):
                raise StoreError(f"The jobs of the dead worker {owner} are being charged by another worker.")
            # Its sessions are gone: the attempts that are read now are those that each job was started with.
            charged = [(one, deaths.charge(cursor, row_id, owner, failed)) for one, row_id in ran]
        for one, written in charged:
            one.verdict = of_row(written)
    give_back(one for one in lost if not may_have_run(one.delivery, running))
    return failed


def without_row(delivery: Delivery, reference: Reference | None, running: frozenset[bytes] | None) -> Verdict | None:
    """Return the verdict on a dead worker's delivery whose reference is unread or of a direct job; None for a row.

    A direct job has no row to be suspected in: each delivery counts that may have run when its worker died. One that
    was charged twice runs as an accused job does, so that a bystander is not there at the third death.
    """
    if reference is None:
        return Verdict.GIVE_BACK
    if not reference.direct:
        return None
    if not may_have_run(delivery, running):
        return Verdict.GIVE_BACK
    return Verdict.FAIL if delivery.crashes + 1 >= MAX_CRASHES else Verdict.CHARGE_CRASH


def of_row(written: CasResult) -> Verdict | None:
    """Return the verdict after the charge of a row; None while another session holds the row."""
    if written.locked:
        return None
    return Verdict.SETTLE if written.terminal else Verdict.GIVE_BACK


def may_have_run(delivery: Delivery, running: frozenset[bytes] | None) -> bool:
    """Return whether a job may have run when its worker died; ``running`` is None when its slots cannot be read."""
    return running is None or delivery.reference in running
