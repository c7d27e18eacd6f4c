"""Decide how a delivery ends and write that to the row, before the settler calls the broker.

ARCHITECTURE.md lists the events. A direct job has no row: the broker holds its counts, and the decisions are the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg

from sidestream.broker.protocol import Delivery
from sidestream.errors import StoreUnavailable
from sidestream.job.job import MAX_CRASHES, MAX_RELEASES
from sidestream.job.observer import JobFailure, JobRun
from sidestream.job.outcome import Fail, Outcome, Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.job.retry import RetryPolicy
from sidestream.store import attempts, bulk, control, outcomes, queries, sessions
from sidestream.store.adapter import ADMIN_SHUTDOWN, CRASH_SHUTDOWN, translate
from sidestream.store.compare_and_set import CasResult
from sidestream.worker import wire
from sidestream.worker.job_log import attempt_line, failed_line, job_id, queue_of
from sidestream.worker.options import application_name
from sidestream.worker.settlement import Settlement
from sidestream.worker.slots import Reading
from sidestream.worker.state import KillReason, WorkerState

log = logging.getLogger(__name__)

COUNT_EVERY = 10
"""The row counts the first release, which shows the reason, and then every tenth."""


ELSEWHERE = {ReasonCode.UNROUTED, ReasonCode.UNREADABLE, ReasonCode.FOREIGN, ReasonCode.NO_DATABASE}
"""Reasons for which a job is left to another worker."""
ELSEWHERE_AGAIN = 30.0
"""Seconds until a job that this worker cannot run is offered again."""
ELSEWHERE_LOGGED = 100
"""Maximum number of kinds of such jobs in the log."""
ALONE_AGAIN = 2.0
"""Seconds until a job that has to run alone is offered again while another one runs alone here."""


REFUSED = 0.1
"""Minimum time, in seconds, between two attempts to reach PostgreSQL; longer when an attempt takes longer."""
RESTART = 60.0
"""Seconds after a restart of PostgreSQL during which a session that an administrator ended accuses no job."""


class RowBusy(Exception):
    """Another session holds the row: repeat the write later."""


class OutcomeWriter:
    """Write outcomes to rows. Only the settler's thread uses it."""

    def __init__(
        self,
        state: WorkerState,
        connect: Callable[[], psycopg.Connection[Any]] | None,
        on_failed: Callable[[JobFailure], None] = failed_line,
    ) -> None:
        """``on_failed`` is called for each job that has failed."""
        self._state = state
        self._on_failed = on_failed
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None
        #: Why PostgreSQL was not reached, and until when (monotonic) it is not asked again.
        self._refused: StoreUnavailable | None = None
        self._refused_until = 0.0
        self._server_started: datetime | None = None
        #: Monotonic time at which another start of the server was seen than before.
        self._restarted_at = float("-inf")
        #: Rows with a written lone start. Its end must be written too, or a later death would be charged to the row.
        self._alone: set[int] = set()
        #: (action, reason) pairs in the log.
        self._elsewhere: set[tuple[bytes, str]] = set()

    def reported(self, delivery: Delivery, job_report: wire.JobReport) -> Settlement:
        """Handle an outcome that a child reported."""
        reference = Reference.unpack(delivery.reference)
        if isinstance(job_report.outcome, Release):
            code = job_report.outcome.reason.code
            if code is ReasonCode.SNOOZED:
                return self._snooze(delivery, reference, job_report.outcome, job_report.attempts_seen)
            if code is ReasonCode.SESSION_LOST:
                return self._lost(delivery, reference, job_report.outcome, job_report.attempts_seen)
            alone = self._end_alone(reference, job_report.outcome.reason)
            return self._release(delivery, reference, job_report.outcome, alone=alone)
        return self._failure(delivery, reference, job_report.outcome, job_report.attempts_seen, "failed")

    def crashed(
        self, delivery: Delivery, reading: Reading, slot: int, kill_reason: KillReason | None, how: str
    ) -> Settlement:
        """Handle the end of the child that held this delivery; ``how`` describes it, for people."""
        reference = Reference.unpack(delivery.reference)
        # Its backend may still run the transaction and hold the row; a second backend may hold its key.
        left = [pid for pid in (reading.backend, reading.guard) if pid]
        if left and self._connect is not None:
            name = application_name(self._state.options.worker, slot)
            # Do not wait for them here: the outcomes of other jobs would wait as well.
            if self._run(lambda cursor: [pid for pid in left if not _is_gone(cursor, pid, name)]):
                raise RowBusy
        if not reading.running:
            # It ended and only the report is missing: the row decides.
            return self._uncharged(reference, Reason(ReasonCode.UNREPORTED, {"how": how}))
        match kill_reason:
            case KillReason.LIMIT:
                return self._over_limit(delivery, reference, reading)
            case KillReason.CANCELLED if not reference.direct:
                self._run(lambda cursor: control.cancel(cursor, reference.id))
                return Settlement(settle=True)
            case KillReason.ZYGOTE if not reference.direct and reading.attempts_seen >= 0:
                # Before the suspicion, which a repetition must not write twice.
                settlement = self._uncharged(reference, _killed(kill_reason))
                self._run(lambda cursor: outcomes.suspect(cursor, reference.id, reading.attempts_seen))
                return settlement
            case KillReason.TERMINATED:
                # Counted as a release with growing delays, so a job that signals itself fails in the end.
                alone = self._end_alone(reference, _killed(kill_reason))
                seen = delivery.attempts if reference.direct else max(reading.attempts_seen, 0)
                self._log_attempt(self.failure_of(delivery, seen + 1, f"{how}; it returns to the queue"), "released")
                return self._release(delivery, reference, Release(_killed(kill_reason), None), alone=alone)
            case None:
                return self._crash(delivery, reference, reading, slot, f"It crashed: {how}.")
            case _:
                return self._uncharged(reference, _killed(kill_reason))

    def started(self, delivery: Delivery, slot: int, seconds: float) -> None:
        """Write that this job has run for ``seconds``."""
        reference = Reference.unpack(delivery.reference)
        if not reference.direct and self._connect is not None:
            # Whoever charges the death of this worker may not know the action.
            most = self._policy(reference).max_attempts
            alone = Reason(ReasonCode.ALONE, {"max_attempts": most})
            reason = Reason(ReasonCode.RUNNING, {"seconds": round(seconds, 1)}) if seconds else alone
            self._record(reference, slot, "started", reason.stored())
            if seconds:
                self._alone.discard(reference.id)  # others run beside it
            else:
                self._alone.add(reference.id)

    def not_started(self, delivery: Delivery) -> Settlement:
        """Handle a delivery that was not started."""
        return self._uncharged(Reference.unpack(delivery.reference), Reason(ReasonCode.UNSTARTED))

    def released(self, delivery: Delivery, releases: int, reason: Reason) -> None:
        """Count the release in the row; it was the ``releases``-th."""
        reference = Reference.unpack(delivery.reference)
        if reference.direct or self._connect is None:
            return
        if releases == 1 or releases % COUNT_EVERY == 0:
            written = self._run(
                lambda cursor: outcomes.count_releases(cursor, reference.id, releases, reason, MAX_RELEASES)
            )
            self._report(delivery, written, f"It was released {releases} times; the last reason: {reason}")

    def failed(self, delivery: Delivery, error: str, detail: str) -> None:
        """Report a direct job that the broker recorded as failed."""
        self._on_failed(self.failure_of(delivery, delivery.attempts + 1, error, detail))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _snooze(self, delivery: Delivery, reference: Reference, outcome: Release, seen: int) -> Settlement:
        """Snooze: charge no attempt, count separately, and keep the head of the key."""
        message = outcome.reason.params["message"]
        delay, cap = (outcome.delay_ms or 0) / 1000, self._policy(reference).max_snoozes
        if reference.direct:  # the broker counts only its releases
            if delivery.releases >= cap:
                return Settlement(fail=f"It snoozed more than {cap} times; the last reason: {message}")
            return Settlement(release=outcome)

        def write(cursor: Any) -> CasResult:
            written = outcomes.snooze(cursor, reference.id, seen, delay, outcome.reason, cap)
            if written.applied:
                self._insert(cursor, reference, -1, "released", outcome.reason.stored())
            return written

        written = self._charge(reference, write)
        self._report(delivery, written, f"It snoozed more than {cap} times; the last reason: {message}")
        return self._settlement(written, int(delay * 1000))

    def _lost(self, delivery: Delivery, reference: Reference, outcome: Release, seen: int) -> Settlement:
        """Suspect a job whose PostgreSQL session ended while it ran; charge it when it ran alone.

        It is not the cause when the server gave another one: the crash of another process, or a restart.
        """
        error = f"Its PostgreSQL session ended while it ran: {outcome.reason.params['error']}"
        sqlstate = outcome.reason.params["sqlstate"]
        if sqlstate == CRASH_SHUTDOWN or (sqlstate == ADMIN_SHUTDOWN and self._was_restarted()):
            return self._release(delivery, reference, outcome, alone=self._end_alone(reference, outcome.reason))
        if reference.direct:
            return self._charge_direct(delivery, error)
        alone = reference.id in self._alone

        def write(cursor: Any) -> CasResult:
            if alone:
                most = self._policy(reference).max_attempts
                written = outcomes.crash(
                    cursor, reference.id, seen, error, MAX_CRASHES, max_attempts=most, with_host=True
                )
            else:
                written = outcomes.suspect(cursor, reference.id, seen)
            if written.applied:
                event, detail = ("crashed", error) if alone else ("released", outcome.reason.stored())
                self._insert(cursor, reference, -1, event, detail)
            return written

        written = self._charge(reference, write)
        self._report(delivery, written, error, ended="crashed" if alone else "")
        return self._settlement(written, 0) if alone or not written.applied else Settlement()

    def _was_restarted(self) -> bool:
        self._run(lambda cursor: None)  # reconnects if necessary, which reads the start time
        return time.monotonic() - self._restarted_at < RESTART

    def _read_server_start(self, connection: psycopg.Connection[Any]) -> None:
        try:
            started = sessions.server_started(connection.cursor())
        except psycopg.Error as error:
            self.close()
            raise translate(error, "connecting") from error
        if self._server_started not in (None, started):
            self._restarted_at = time.monotonic()
        self._server_started = started

    def _policy(self, reference: Reference) -> RetryPolicy:
        facts = self._state.actions.get(reference.action)
        return facts.retry if facts is not None else RetryPolicy()

    def _release(self, delivery: Delivery, reference: Reference, outcome: Release, *, alone: bool) -> Settlement:
        code = outcome.reason.code
        if code is ReasonCode.SUSPECT:
            return Settlement(release=replace(outcome, delay_ms=int(ALONE_AGAIN * 1000), count=False), run_alone=True)
        if code in ELSEWHERE:
            # Another release or database serves it: waiting for such a worker is no fault, however long it takes.
            self._log_elsewhere(reference, outcome.reason)
            return Settlement(release=replace(outcome, delay_ms=int(ELSEWHERE_AGAIN * 1000), count=False))
        if code is ReasonCode.UPGRADING:
            # A person does this and it may take a night: write the reason once and count nothing.
            if not reference.direct and self._connect is not None:
                self._run(lambda cursor: bulk.note_reason(cursor, [reference.id], outcome.reason))
            # Each lone start writes two rows, so do not repeat it every two seconds.
            delay_ms = int(ELSEWHERE_AGAIN * 1000) if alone else outcome.delay_ms
            return Settlement(release=replace(outcome, delay_ms=delay_ms, count=False))
        if reference.direct and delivery.releases + 1 >= MAX_RELEASES:
            return Settlement(fail=f"It was released {MAX_RELEASES} times; the last reason: {outcome.reason}")
        return Settlement(release=outcome)

    def _log_elsewhere(self, reference: Reference, reason: Reason) -> None:
        kind = (reference.action, reason.stored())
        if kind not in self._elsewhere and len(self._elsewhere) < ELSEWHERE_LOGGED:
            self._elsewhere.add(kind)
            log.warning("Jobs are left to another worker: %s.", reason, extra={"action": "job_parked"})

    def _failure(self, delivery: Delivery, reference: Reference, outcome: Outcome, seen: int, event: str) -> Settlement:
        assert isinstance(outcome, Retry | Fail)
        delay_ms = int(outcome.delay * 1000) if isinstance(outcome, Retry) else 0
        if reference.direct:
            if event != "failed":
                self._log_attempt(self.failure_of(delivery, seen + 1, outcome.error), event)
            if isinstance(outcome, Fail):
                return Settlement(fail=outcome.error, detail=outcome.detail)
            return Settlement(release=Release(delay_ms=delay_ms, count=False, charge_attempt=True))

        def write(cursor: Any) -> CasResult:
            if isinstance(outcome, Retry):
                written = outcomes.fail_attempt(cursor, reference.id, seen, outcome.delay, outcome.error)
            else:
                written = outcomes.fail_job(cursor, reference.id, max(seen, 0), outcome.error)
            if written.applied:
                self._insert(cursor, reference, -1, event, f"{outcome.error}\n{outcome.detail}".strip())
            return written

        written = self._charge(reference, write)
        ended = "" if event == "failed" else event  # the child logged the failed attempt
        self._report(delivery, written, outcome.error, outcome.detail, ended=ended)
        return self._settlement(written, delay_ms)

    def _over_limit(self, delivery: Delivery, reference: Reference, reading: Reading) -> Settlement:
        facts = self._state.actions.get(reference.action)
        limit = self._state.options.hard_limit
        if facts is not None and facts.hard_limit is not None:
            limit = facts.hard_limit
        seen, forgiven = delivery.attempts, 0
        if not reference.direct:
            seen = reading.attempts_seen
            if seen < 0:
                return self._uncharged(reference, _killed(KillReason.LIMIT))  # the row was not acquired: nothing ran
            found = self._run(lambda cursor: queries.job(cursor, reference.id))
            forgiven = found[0].forgiven if found else 0
        error = f"It ran longer than its hard limit of {limit:g} s and was killed."
        outcome = self._policy(reference).decide(seen - forgiven + 1, error)
        return self._failure(delivery, reference, outcome, seen, "timeout")

    def _crash(self, delivery: Delivery, reference: Reference, reading: Reading, slot: int, error: str) -> Settlement:
        most = self._policy(reference).max_attempts
        if reference.direct:
            return self._charge_direct(delivery, error, most)
        if reading.attempts_seen < 0:
            reason = Reason(ReasonCode.UNACQUIRED)
            self._end_alone(reference, reason)
            return Settlement(release=Release(reason))

        def write(cursor: Any) -> CasResult:
            written = outcomes.crash(cursor, reference.id, reading.attempts_seen, error, MAX_CRASHES, max_attempts=most)
            if written.applied:
                self._insert(cursor, reference, slot, "crashed", error)
            return written

        written = self._charge(reference, write)
        self._report(delivery, written, error, ended="crashed")
        settlement = self._settlement(written, 0)
        return replace(settlement, run_again=True) if settlement.release.charge_attempt else settlement

    def _charge_direct(self, delivery: Delivery, error: str, max_attempts: int = outcomes.NO_MOST) -> Settlement:
        """Charge a direct job with a crash, which the broker counts; fail it at its maximum."""
        self._log_attempt(self.failure_of(delivery, delivery.attempts + 1, error), "crashed")
        if delivery.crashes + 1 >= MAX_CRASHES or delivery.attempts + 1 >= max_attempts:
            return Settlement(fail=error)
        return Settlement(release=Release(count=False, charge_crash=True))

    def _charge(self, reference: Reference, write: Callable[[Any], CasResult]) -> CasResult:
        """Write the end of an attempt with its attempt row, which also ends a lone start."""
        written: CasResult = self._run(write)
        if written.applied:
            self._alone.discard(reference.id)
        return written

    def _report(
        self, delivery: Delivery, written: CasResult, error: str, traceback: str = "", *, ended: str = ""
    ) -> None:
        """Log an attempt whose process did not report its end, and report a failed job."""
        if not written.applied:
            return
        failure = self.failure_of(delivery, written.attempts, error, traceback)
        if ended:
            self._log_attempt(failure, ended)
        if written.failed:
            self._on_failed(failure)

    @staticmethod
    def _log_attempt(failure: JobFailure, ended: str) -> None:
        run = JobRun(failure.id, failure.action, failure.queue, failure.attempts)
        attempt_line(logging.WARNING, run, ended, None, f": {failure.error}")

    def failure_of(self, delivery: Delivery, attempts: int, error: str, traceback: str = "") -> JobFailure:
        """Return what the application learns about a job that has failed."""
        reference = Reference.unpack(delivery.reference)
        facts = self._state.actions.get(reference.action)
        action = reference.action.hex() if facts is None else facts.name
        return JobFailure(job_id(reference), action, queue_of(delivery.lane), attempts, error, traceback)

    def _uncharged(self, reference: Reference, reason: Reason) -> Settlement:
        """Return the job to its lane and count nothing."""
        self._end_alone(reference, reason)
        return Settlement()

    @staticmethod
    def _settlement(written: CasResult, delay_ms: int) -> Settlement:
        if written.locked:
            raise RowBusy
        if written.terminal or written.missing:
            return Settlement(settle=True)
        if written.applied:
            return Settlement(release=Release(delay_ms=delay_ms, count=False, charge_attempt=True))
        return Settlement()  # another worker wrote an attempt: the row decides at the next acquire

    def _end_alone(self, reference: Reference, reason: Reason) -> bool:
        """Write the end of a lone start that no other row records; return whether there was one."""
        if reference.direct or reference.id not in self._alone:
            return False
        self._record(reference, -1, "released", reason.stored())
        self._alone.discard(reference.id)
        return True

    def _record(self, reference: Reference, slot: int, event: str, detail: str) -> None:
        self._run(lambda cursor: self._insert(cursor, reference, slot, event, detail))

    def _insert(self, cursor: Any, reference: Reference, slot: int, event: str, detail: str) -> None:
        attempts.record(cursor, reference.id, self._state.options.worker, slot, event, detail)

    def _run(self, statement: Callable[[Any], Any]) -> Any:
        """Run ``statement`` in a separate transaction; raise StoreUnavailable without an answer."""
        if self._connect is None:
            raise StoreUnavailable(
                "This worker has no database to write a job's outcome to; set SIDESTREAM_DATABASE_URL."
            )
        began = time.monotonic()
        if self._refused is not None and began < self._refused_until:
            raise self._refused
        try:
            connection = self._connected(self._connect)
            try:
                with connection.transaction(), connection.cursor() as cursor:
                    result = statement(cursor)
            except psycopg.Error as error:
                if connection.broken or connection.closed:
                    self.close()
                raise translate(error, "writing a job's outcome") from error
        except StoreUnavailable as error:
            # Do not retry for every queued outcome: those that need no PostgreSQL must not wait.
            now = time.monotonic()
            self._refused, self._refused_until = error, now + max(REFUSED, now - began)
            raise
        self._refused = None
        return result

    def _connected(self, connect: Callable[[], psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect()
            self._read_server_start(self._connection)
        return self._connection


def _is_gone(cursor: Any, pid: int, name: str) -> bool:
    """Ask the session to end; return whether it has."""
    return sessions.terminate_backend(cursor, pid, name, patience=0.0)


def _killed(kill_reason: KillReason) -> Reason:
    return Reason(ReasonCode.KILLED, {"by": kill_reason.value})
