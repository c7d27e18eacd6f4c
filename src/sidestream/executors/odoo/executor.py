"""Run declared methods of Odoo models. No other package of the engine imports odoo.

A job runs in these steps:

1. lock its key (for relock and three-step actions, also its id) on the lock connection, in autocommit;
2. acquire the row with one statement on Odoo's cursor, which also reads whether another process has changed the
   registry or its caches, and whether modules are being installed;
3. call the addon's ``sidestream.job._sidestream_call``: user, company, language, records, arguments, then the method;
4. flush, write "done", COMMIT, and run the hooks after the commit, whose errors no longer matter to the job;
5. free the locks.

Our own statements bypass Odoo's cursor, so that Odoo does not log a conflict as an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import odoo.api
import odoo.exceptions
import odoo.init  # first: it sets up the package
import odoo.modules.loading
import odoo.sql_db
import odoo.tools
from odoo.modules.registry import Registry
from odoo.service.server import load_server_wide_modules

from sidestream.crashpoints import crash_point
from sidestream.errors import ActionError, SettingsError, StoreUnavailable, WireError
from sidestream.executors.acquire import acquire_again, check_still_held, commit_cancellation, session_locks, verdict_of
from sidestream.executors.application_fault import application_error, is_raised_in
from sidestream.executors.odoo import modules, prefetch
from sidestream.executors.odoo.error_messages import humanize_error
from sidestream.executors.odoo.model_action import ModelAction, collect
from sidestream.executors.odoo.session import OdooSession
from sidestream.executors.partial_commit import PartialCommits
from sidestream.executors.protocol import (
    Acquired,
    ActionFacts,
    ApplicationChanged,
    ApplicationNotReady,
    SessionLost,
    Verdict,
)
from sidestream.executors.session import VERIFY_TIMEOUT, Session
from sidestream.job.codec import decode_payload
from sidestream.job.names import tag
from sidestream.job.observer import JobFailure
from sidestream.job.outcome import Release
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.process import share_memory
from sidestream.store import acquire, outcomes, sessions
from sidestream.store.acquire import AcquireResult
from sidestream.store.adapter import UNDEFINED_TABLE, server_options, server_version, sqlstate

log = logging.getLogger(__name__)

ADDON = "sidestream"
JOB_MODEL = "sidestream.job"
UPGRADE_DELAY_MS = 2000
"""Milliseconds for which a job is released while modules are being installed, upgraded or removed."""


ZYGOTE = "sidestream/zygote"
"""Application name of the zygote's PostgreSQL sessions."""


@contextlib.contextmanager
def _preserve_module_states() -> Iterator[None]:
    """Keep Odoo from resetting module states when a load fails; another process may change them."""
    reset = odoo.modules.loading.reset_modules_state
    odoo.modules.loading.reset_modules_state = lambda database: None
    try:
        yield
    finally:
        odoo.modules.loading.reset_modules_state = reset


class Body:
    """The state of an acquired job from acquire to commit."""

    __slots__ = ("action", "args", "kwargs", "locks", "name", "parts", "prefetched", "row")

    def __init__(
        self, name: str, action: ModelAction, row: acquire.Acquired, prefetched: prefetch.Prefetched, locks: list[bytes]
    ) -> None:
        self.name = name
        self.action = action
        self.row = row
        self.prefetched = prefetched
        #: Session-level locks to free after the attempt.
        self.locks = locks
        self.parts = PartialCommits()
        self.args, self.kwargs = decode_payload(row.payload)


class OdooExecutor:
    """Runs declared methods of models; see the executor protocol for each method."""

    def __init__(
        self, config: Path, database: str, *, database_tag: bytes, dsn: str, application_name: Callable[[int], str]
    ) -> None:
        """Prepare without loading or connecting.

        Args:
            config: Odoo's configuration file.
            database: Name of the database.
            database_tag: Its tag, which references to its rows contain.
            dsn: The same database, for our own connections.
            application_name: Returns the name of the PostgreSQL sessions of the child in a slot.
        """
        self.stale = False
        self.on_backend: Callable[[int], None] = lambda pid: None
        self.on_lock_backend: Callable[[int], None] = lambda pid: None
        self._config = config
        self._database = database
        self._tag = database_tag
        self._dsn = dsn
        self._application_name = application_name
        self._name = ""
        self._actions: dict[bytes, tuple[str, ModelAction]] = {}
        self._registry: Any = None
        #: The expressions to prefetch with a job, by the name of its action.
        self._prefetch: dict[str, tuple[str, ...]] = {}
        self._odoo: OdooSession
        self._lock_session: Session

    # -- loading --------------------------------------------------------------------------------------------------

    def load(self) -> Sequence[ActionFacts]:
        """Load Odoo and the database's registry, and close all connections."""
        registry = self._registry = self._load_registry()
        if ADDON not in registry._init_modules:
            raise SettingsError(
                f"The addon {ADDON!r} is not installed in the database {self._database!r}; "
                f"run: odoo -d {self._database} -i {ADDON}"
            )
        actions = collect(registry.models)
        self._actions = {tag(name, 4): (name, action) for name, action in actions.items()}
        self._prefetch = {name: self._prefetch_of(registry[name.rpartition(".")[0]]) for name in actions}
        self._warm_up({name.rpartition(".")[0] for name in actions})
        odoo.sql_db.close_all()  # parent and child must not share a connection
        share_memory()
        return [ActionFacts(name, tag(name, 4), a.hard_limit, a.retry, a.queue) for name, a in actions.items()]

    def _prefetch_of(self, model: Any) -> tuple[str, ...]:
        table = model._table if self._has_table(model) else None
        return prefetch.expressions(tuple(self._registry.cache_sequences), table)

    @staticmethod
    def _has_table(model: Any) -> bool:
        return bool(model._auto and not model._abstract)  # otherwise its records come from a query

    def _warm_up(self, models: Collection[str]) -> None:
        """Fill Odoo's lazy caches, so that children share them and their first jobs are not slower.

        Only reads. The first job checks that the caches are current, because the registry keeps the older signals.
        """
        registry = self._registry
        try:
            with contextlib.closing(registry.cursor()) as cr:
                env = odoo.api.Environment(cr, odoo.SUPERUSER_ID, {})
                env["res.lang"]._get_data(code="en_US")
                env.user._get_company_ids()
                for model in sorted(models):
                    for field in env[model]._fields.values():
                        registry.is_modifying_relations(field)
                    if self._has_table(env[model]):  # a query may be slow, but not the first row of a table
                        env[model].with_context(active_test=False).search([], limit=1, order="id").fetch()
        except Exception as error:  # noqa: BLE001  # an override may need more than this; it is optional
            log.info("Could not fill all caches in advance: %s", error, extra={"action": "warm_up_failed"})

    def _load_registry(self) -> Any:
        arguments = ["-c", str(self._config), "-d", self._database, "--no-http"]
        odoo.tools.config.parse_config(arguments, setup_logging=False)
        self._check_modules()  # also learns the server's version
        self._connect_as(ZYGOTE)
        try:
            load_server_wide_modules()
            with _preserve_module_states():
                return Registry(self._database)
        except Exception as error:
            self._check_modules()  # another process may have begun to change them
            if is_raised_in("odoo.addons", error):
                raise application_error(f"An addon in the database {self._database!r}", error) from error
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise SettingsError(
                f"The database {self._database!r} cannot be loaded as an Odoo database ({first}); check its name, and "
                f"the PostgreSQL options in {self._config}."
            ) from error

    def _check_modules(self) -> None:
        try:
            obstacle = modules.loading_obstacle(self._dsn, ZYGOTE)
        except StoreUnavailable as error:
            raise ApplicationNotReady(str(error)) from error
        if obstacle is not None:
            raise ApplicationNotReady(obstacle)

    def begin(self, slot: int) -> None:
        """Create this child's sessions; the first job that needs them opens them."""
        name = self._name = self._application_name(slot)
        self._connect_as(name)
        # The registry still has the zygote's connection parameters, with the zygote's application name.
        self._registry._db = odoo.sql_db.db_connect(self._database)
        threading.current_thread().dbname = self._database  # type: ignore[attr-defined]  # for Odoo's log lines
        self._lock_session = Session(self._dsn, name, lambda pid: self.on_lock_backend(pid))
        conflict = odoo.exceptions.ConcurrencyError
        self._odoo = OdooSession(self._registry, self._tag, lambda pid: self.on_backend(pid), conflict)

    def _connect_as(self, name: str) -> None:
        odoo.tools.config["db_app_name"] = name
        # libpq reads it for every connection of this process, so that the backend of a vanished worker ends soon.
        os.environ["PGOPTIONS"] = server_options(os.environ.get("PGOPTIONS", ""), server_version(self._dsn))

    # -- each job ------------------------------------------------------------------------------------------------

    def acquire(self, reference: bytes, payload: bytes | None, *, attempts: int, run_alone: bool) -> Acquired | Verdict:
        try:
            ref = Reference.unpack(reference)
        except WireError as error:
            return Release(Reason(ReasonCode.UNREADABLE, {"error": str(error)}))
        known = self._actions.get(ref.action)
        if known is None or ref.direct:
            return Release(Reason(ReasonCode.UNROUTED))
        name, action = known
        if ref.database != self._tag:
            return Release(Reason(ReasonCode.FOREIGN))
        locks = session_locks(ref, between_transactions=action.three_step or action.commits == "relock")
        if not self._lock_session.try_locks(locks):
            return Release(Reason(ReasonCode.LOCKED), None)
        try:
            found = self._acquire_row(ref.id, name)
            commit_cancellation(found, self._odoo.commit)
            verdict = verdict_of(found, ref, run_alone=run_alone)
            if verdict is None:
                assert isinstance(found, acquire.Acquired)
                prefetched = prefetch.read(found.prefetched)
                verdict = self._check_registry(prefetched)
                if verdict is None:
                    crash_point("child.acquired")
                    return self._acquired(Body(name, action, found, prefetched, locks))
        except WireError as error:
            verdict = Release(Reason(ReasonCode.UNREADABLE, {"error": str(error)}))
        except BaseException:
            self.reset()
            self._lock_session.unlock_all(locks)
            raise
        self.reset()
        self._lock_session.unlock_all(locks)
        return verdict

    def _acquired(self, body: Body) -> Acquired:
        action, row = body.action, body.row
        acquired = Acquired(body.name, row.attempts, action.soft_limit, action.retry, body, queue=row.queue)
        acquired.forgiven = row.forgiven
        part = (lambda: self._commit_part(acquired)) if action.commits == "relock" else None
        self._odoo.guard.begin(body.name, acquired.follow_ups, row.requested_by or row.user_id, part)
        return acquired

    def run(self, acquired: Acquired) -> None:
        with self._humanized_errors(acquired.body):
            self._odoo.guarded(lambda: self._call(acquired))
        crash_point("child.ran")

    def commit(self, acquired: Acquired) -> None:
        """Write "done" and commit, then run the hooks and signal changes to other processes."""
        body: Body = acquired.body
        session = self._odoo
        with self._humanized_errors(body):
            body.parts.check()
            session.guarded(session.cr.flush)
            self._check_locks(body)
            session.guarded(lambda: outcomes.finish(session.store, body.row.id))
            crash_point("child.written")
            session.commit()
        crash_point("child.committed")
        session.guard.end()
        self._committed(body)

    def verify(self, acquired: Acquired) -> bool:
        session, lost = self._lock_session, self._odoo.backend
        self._odoo.drop()

        def read() -> bool:
            cursor = session.cursor
            sessions.terminate_backend(cursor, lost, self._name)
            return acquire.state_when_unlocked(cursor, acquired.body.row.id, timeout=VERIFY_TIMEOUT) != "pending"

        return session.guarded(read)

    def reset(self) -> None:
        self._odoo.guard.end()
        self._odoo.rollback()

    def release_locks(self, acquired: Acquired) -> None:
        self._lock_session.unlock_all(acquired.body.locks)

    @property
    def has_failure_hooks(self) -> bool:
        """Whether an addon overrides ``sidestream.job._on_failed``."""
        base, found = "odoo.addons.sidestream.", self._registry[JOB_MODEL]._on_failed
        return not found.__module__.startswith(base)

    def job_failed(self, failure: JobFailure) -> None:
        """Call ``_on_failed`` of the job's record as the superuser, in a separate transaction."""
        try:
            with self._registry.cursor() as cursor:
                odoo.api.Environment(cursor, odoo.SUPERUSER_ID, {})[JOB_MODEL].browse(failure.id)._on_failed()
        except Exception:
            log.exception("A failure hook failed.", extra={"action": "failure_hook_failed"})

    def close(self) -> None:
        self._odoo.drop()
        self._lock_session.close()

    def _committed(self, body: Body) -> None:
        """Run the hooks after a commit; an error here must not cause a retry."""
        try:
            self._odoo.committed()
        except Exception:
            log.exception(
                "Job %s (%s) is done, but a hook after its commit failed; the job is not repeated.",
                body.row.id,
                body.name,
                extra={"action": "hook_failed"},
            )
            self._odoo.rollback()

    @contextlib.contextmanager
    def _humanized_errors(self, body: Body) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            humanize_error(error, odoo.exceptions.RedirectWarning, lambda: self._message_env(body))
            raise

    def _message_env(self, body: Body) -> Any:
        self._odoo.rollback()
        context = {"lang": json.loads(body.row.context or "{}").get("lang")}
        return odoo.api.Environment(self._odoo.cr, odoo.SUPERUSER_ID, context)

    # -- acquiring -----------------------------------------------------------------------------------------------

    def _check_locks(self, body: Body) -> None:
        """Raise :class:`SessionLost` when the connection that holds the job's locks is lost."""
        if body.locks and not self._lock_session.alive():
            raise SessionLost(
                f"Job {body.row.id} lost the connection that holds its locks; nothing more was committed.",
                self._lock_session.end_code,
            )

    def _acquire_row(self, row_id: int, name: str) -> AcquireResult:
        session = self._odoo
        try:
            return session.guarded(lambda: acquire.acquire_job(session.store, row_id, prefetch=self._prefetch[name]))
        except Exception as error:
            if sqlstate(error) != UNDEFINED_TABLE:
                raise
        # The table of its records does not exist. Unless this worker has missed a change, Odoo reports it to the job.
        session.rollback()
        self._prefetch[name] = prefetch.expressions(tuple(self._registry.cache_sequences), None)
        return session.guarded(lambda: acquire.acquire_job(session.store, row_id, prefetch=self._prefetch[name]))

    def _check_registry(self, prefetched: prefetch.Prefetched) -> Release | None:
        """Check for a new registry, invalid caches and modules that are being installed."""
        if prefetched.modules_change:
            return Release(Reason(ReasonCode.UPGRADING), UPGRADE_DELAY_MS)
        registry = self._registry
        if prefetched.registry != registry.registry_sequence:
            self.stale = True
            return Release(Reason(ReasonCode.STOPPING))
        if prefetched.caches != list(registry.cache_sequences.values()):
            registry.check_signaling(self._odoo.cr)
        return None

    # -- running -------------------------------------------------------------------------------------------------

    def _call(self, acquired: Acquired) -> None:
        body: Body = acquired.body
        row = body.row
        jobs = odoo.api.Environment(self._odoo.cr, odoo.SUPERUSER_ID, {})[f"{ADDON}.job"]
        result = jobs._sidestream_call(
            body.name,
            body.args,
            body.kwargs,
            job_id=row.id,
            user_id=row.user_id,
            context=row.context,
            attempt=row.attempts + 1,
            user_active=body.prefetched.user_active,
            gone=body.prefetched.gone,
        )
        if steps := body.action.steps_of(body.name, result):
            self._three_steps(body, steps, jobs._sidestream_idempotency_key(row.id))

    def _three_steps(self, body: Body, steps: Generator[Any, Any, Any], key: str) -> None:
        session = self._odoo
        try:
            call = next(steps)
        except StopIteration:
            return  # there is no call to make
        if not callable(call):
            raise ActionError(
                f"The three-step action {body.name!r} yielded {call!r:.60}; expected a function, which is called with "
                "the idempotency key outside any transaction."
            )
        # The first step may not write. This ends its snapshot and frees its row; the call needs the locks.
        self._end_transaction()
        self._check_locks(body)
        with session.guard.outside():
            answer = call(key)
        self._acquire_again(body)
        try:
            steps.send(answer)
        except StopIteration:
            return
        raise ActionError(
            f"The three-step action {body.name!r} yielded twice; expected one call. Split it into two jobs."
        )

    def _commit_part(self, acquired: Acquired) -> None:
        """Commit the work so far, then lock and check the job again."""
        session = self._odoo
        with acquired.body.parts.boundary():
            session.guarded(session.cr.flush)
            self._check_locks(acquired.body)
            session.commit()
            self._committed(acquired.body)
            self._acquire_again(acquired.body)

    def _end_transaction(self) -> None:
        """End a transaction that wrote nothing, and keep the cursor."""
        session = self._odoo
        session.guarded(lambda: session.guard.rollback(session.cr))
        session.registry.reset_changes()

    def _acquire_again(self, body: Body) -> None:
        self._check_locks(body)
        session, row = self._odoo, body.row
        expressions = prefetch.expressions(tuple(self._registry.cache_sequences), None)
        found = acquire_again(
            lambda: session.guarded(
                lambda: acquire.acquire_job(session.store, row.id, attempts_seen=row.attempts, prefetch=expressions)
            ),
            self._end_transaction,
        )
        check_still_held(row, found)
        assert isinstance(found, acquire.Acquired)
        verdict = self._check_registry(prefetch.read(found.prefetched))
        if verdict is not None:
            raise ApplicationChanged(verdict)
