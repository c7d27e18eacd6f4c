"""Run Python functions, whose effects go to the database that holds the rows.

A row's job runs in these steps:

1. lock its key (for relock and three-step actions, also its id) for the session, in a separate statement;
2. BEGIN at REPEATABLE READ, and acquire the row with one statement;
3. call the action;
4. COMMIT the effect together with "done";
5. free the session lock.

The session lock and the transaction share one connection, so neither is lost without the other
(docs/decisions/0004-key-lock-on-the-same-session.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sidestream.crashpoints import crash_point
from sidestream.errors import BadSignature, WireError
from sidestream.executors.acquire import acquire_again, check_still_held, commit_cancellation, session_locks, verdict_of
from sidestream.executors.declaration import call
from sidestream.executors.partial_commit import PartialCommits
from sidestream.executors.protocol import Acquired, ActionFacts, Verdict
from sidestream.executors.python.actions import Action, Actions, load_actions
from sidestream.executors.python.context import Context
from sidestream.executors.session import Session
from sidestream.job.building import build_job, check_arguments
from sidestream.job.codec import Signer, decode_payload
from sidestream.job.job import Job
from sidestream.job.names import tag
from sidestream.job.observer import JobFailure
from sidestream.job.options import JobOptions
from sidestream.job.outcome import Done, Fail, Release
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.relay.publications import publications_of
from sidestream.store import acquire, outcomes
from sidestream.store.acquire import AcquireResult
from sidestream.store.insert import insert, insert_done

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Body:
    """The state of an acquired job from acquire to commit."""

    action: Action
    job: Job
    #: Session-level locks to free after the attempt.
    locks: list[bytes]
    #: Whether the action runs in a database transaction.
    transaction: bool
    parts: PartialCommits = field(default_factory=PartialCommits)
    context: Context = field(init=False)


class PythonExecutor:
    """Runs declared Python functions; see the executor protocol for each method."""

    stale = False

    def __init__(
        self, app: str | Actions, *, dsn: str | None, signer: Signer | None, application_name: Callable[[int], str]
    ) -> None:
        """Prepare without connecting; the first job that needs a connection opens it.

        Args:
            app: ``module:attribute`` of the :class:`Actions`, or the object itself.
            dsn: The database that holds the rows; None for direct jobs without a database.
            signer: Verifies direct jobs; without it they fail.
            application_name: Returns the name of the PostgreSQL session of the child in a slot.
        """
        self.on_backend: Callable[[int], None] = lambda pid: None
        self.on_lock_backend: Callable[[int], None] = lambda pid: None  # never called: there is only one session
        self._app = app
        self._actions = app if isinstance(app, Actions) else Actions()
        self._signer = signer
        self._dsn = dsn
        self._application_name = application_name
        self._session: Session | None = None

    def load(self) -> Sequence[ActionFacts]:
        """Import the application's module."""
        if isinstance(self._app, str):
            self._actions = load_actions(self._app)
        return [ActionFacts(a.name, tag(a.name, 4), a.hard_limit, a.retry, a.queue) for a in self._actions]

    def begin(self, slot: int) -> None:
        """Create this child's session; the first job that needs it opens it."""
        if self._dsn is not None:
            self._session = Session(self._dsn, self._application_name(slot), lambda pid: self.on_backend(pid))

    def acquire(self, reference: bytes, payload: bytes | None, *, attempts: int, run_alone: bool) -> Acquired | Verdict:
        try:
            ref = Reference.unpack(reference)
        except WireError as error:
            return Release(Reason(ReasonCode.UNREADABLE, {"error": str(error)}))
        action = self._actions.by_tag(ref.action)
        if action is None:
            return Release(Reason(ReasonCode.UNROUTED))
        if ref.direct:
            return self._acquire_direct(ref, action, payload, attempts)
        return self._acquire_row(ref, action, run_alone)

    def run(self, acquired: Acquired) -> None:
        body: Body = acquired.body
        guarded = self._session.guarded if self._session is not None and body.transaction else _plainly
        guarded(lambda: self._call(body))
        crash_point("child.ran")

    def commit(self, acquired: Acquired) -> None:
        body: Body = acquired.body
        session = self._session
        if session is None or not body.transaction:
            return
        body.parts.check()
        if body.job.id is not None:
            row_id = body.job.id
            session.guarded(lambda: outcomes.finish(session.cursor, row_id))
        elif not session.guarded(lambda: insert_done(session.cursor, body.job)):
            session.rollback()  # another delivery of this direct job has committed its effect
            return
        crash_point("child.written")
        session.commit()
        crash_point("child.committed")

    def verify(self, acquired: Acquired) -> bool:
        body: Body = acquired.body
        assert self._session is not None  # only the commit of a session is uncertain
        if body.job.id is not None:
            return self._session.state_after_lost_commit(body.job.id) != "pending"
        return self._session.done_after_lost_commit(body.job.uuid)

    def reset(self) -> None:
        if self._session is not None:
            self._session.rollback()

    def release_locks(self, acquired: Acquired) -> None:
        """Free the job's locks, and close a session that it changed."""
        self._unlock(acquired.body.locks)
        if self._session is not None:
            self._session.close_if_changed()

    @property
    def has_failure_hooks(self) -> bool:
        """Whether the application declared a failure hook."""
        return bool(self._actions.failure_hooks)

    def job_failed(self, failure: JobFailure) -> None:
        for hook in self._actions.failure_hooks:
            try:
                hook(failure)
            except Exception:
                log.exception("A failure hook failed.", extra={"action": "failure_hook_failed"})

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _acquire_direct(
        self, ref: Reference, action: Action, payload: bytes | None, attempts: int
    ) -> Acquired | Verdict:
        uuid = ref.uuid
        assert uuid is not None  # every direct reference has one
        if payload is None or self._signer is None:
            missing = "its signed payload is missing in Redis" if payload is None else "this worker has no signing keys"
            return Fail(f"The direct job {uuid} cannot run: {missing}.")
        try:
            job = self._signer.open(payload, uuid).job
        except BadSignature as error:
            return Fail(str(error))
        except WireError as error:
            return Release(Reason(ReasonCode.UNREADABLE, {"error": str(error)}))
        if job.action != action.name:
            return Fail(f"The direct job {uuid} cannot run: its reference does not match its signed payload.")
        if job.expires_at is not None and not attempts and job.expires_at <= datetime.now(UTC):
            log.info("Direct job %s has expired and does not run.", uuid, extra={"action": "direct_expired"})
            return Done()
        session = self._session if action.database else None
        if session is not None:
            session.begin()
            if session.guarded(lambda: acquire.inbox_has(session.cursor, uuid)):
                session.rollback()
                return Done()
        return self._acquired(action, job, attempts, [], transaction=session is not None)

    def _acquire_row(self, ref: Reference, action: Action, run_alone: bool) -> Acquired | Verdict:
        session = self._session
        if session is None:
            return Release(Reason(ReasonCode.NO_DATABASE))
        if ref.database != session.database.tag:
            return Release(Reason(ReasonCode.FOREIGN))
        locks = session_locks(ref, between_transactions=action.steps is not None or action.commits == "relock")
        if not session.try_locks(locks):
            return Release(Reason(ReasonCode.LOCKED), None)
        try:
            found = self._acquire_statement(ref.id)
            commit_cancellation(found, session.commit)
        except BaseException:
            self.reset()
            self._unlock(locks)
            raise
        verdict = verdict_of(found, ref, run_alone=run_alone)
        if verdict is not None:
            session.rollback()
            self._unlock(locks)
            return verdict
        assert isinstance(found, acquire.Acquired)
        crash_point("child.acquired")
        try:
            args, kwargs = decode_payload(found.payload)
        except WireError as error:
            session.rollback()
            self._unlock(locks)
            return Release(Reason(ReasonCode.UNREADABLE, {"error": str(error)}))
        job = Job(
            found.action, tuple(args), kwargs, found.queue, found.key, None, ref.id, None, found.attempts, found.crashes
        )
        acquired = self._acquired(action, job, found.attempts, locks, transaction=True)
        acquired.forgiven = found.forgiven
        return acquired

    def _acquire_statement(self, row_id: int, *, attempts_seen: int | None = None) -> AcquireResult:
        session = self._session
        assert session is not None
        session.begin()
        return session.guarded(lambda: acquire.acquire_job(session.cursor, row_id, attempts_seen=attempts_seen))

    def _acquired(self, action: Action, job: Job, attempts: int, locks: list[bytes], *, transaction: bool) -> Acquired:
        body = Body(action, job, locks, transaction=transaction)
        acquired = Acquired(action.name, attempts, action.soft_limit, action.retry, body, queue=job.queue)
        session = self._session if transaction else None
        if session is not None:
            session.connection.action = action.name
        body.context = Context(
            action=action.name,
            job_id=job.id,
            uuid=job.uuid,
            attempt=attempts + 1,
            origin="direct" if session is None or job.id is None else str(session.database.origin_of(job.id)),
            connection=session.connection if session is not None else None,
            enqueue=(lambda *a, **k: self._enqueue(acquired, *a, **k)) if session is not None else None,
            commit=(lambda: self._relock(acquired)) if action.commits == "relock" and job.id is not None else None,
        )
        return acquired

    def _call(self, body: Body) -> None:
        args, kwargs = body.job.args, body.job.kwargs
        steps = body.action.steps
        if steps is None:
            call(body.action.name, body.action.function, body.context, *args, **kwargs)
            return
        request = call(body.action.name, steps.read, body.context, *args, **kwargs)
        if body.transaction and self._session is not None:
            # The first step may not write. Ending its transaction frees the row and the snapshot during the call.
            self._session.rollback()
        with body.context.outside():
            answer = steps.call(body.context, request)
        if body.transaction:
            self._acquire_again(body)
        steps.write(body.context, request, answer)

    def _relock(self, acquired: Acquired) -> None:
        body: Body = acquired.body
        session = self._session
        assert session is not None
        with body.parts.boundary():
            session.commit()
            self._acquire_again(body)

    def _acquire_again(self, body: Body) -> None:
        session = self._session
        assert session is not None
        if body.job.id is None:
            session.begin()
            return
        row_id, seen = body.job.id, body.job.attempts
        found = acquire_again(lambda: self._acquire_statement(row_id, attempts_seen=seen), session.rollback)
        check_still_held(body.job, found)

    def _enqueue(
        self, acquired: Acquired, action: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: JobOptions
    ) -> int:
        declared = self._actions.get(action)
        session = self._session
        assert session is not None
        given = [option for option, value in options.items() if value is not None]
        check_arguments(action, args, kwargs)
        defaults = declared.job_options(args, kwargs, given)
        job = build_job(action, args, kwargs, now=datetime.now(UTC), defaults=defaults, **options)
        [stored] = session.guarded(lambda: insert(session.cursor, [job]))
        acquired.follow_ups += publications_of([stored], [job], session.database)
        return stored.id

    def _unlock(self, locks: Sequence[bytes]) -> None:
        if self._session is not None:
            self._session.unlock_all(locks)


def _plainly(call: Callable[[], None]) -> None:
    call()
