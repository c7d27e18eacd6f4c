"""The ORM executor: actions are declared methods of Odoo models. The only file of the engine that imports odoo.

A job runs so:

1. its key (or, for relock and three-step actions, its id) is locked on the guard connection, in autocommit;
2. the statement that opens the job, on Odoo's cursor; it also tells whether another process changed the registry or its
   caches, and whether modules are being installed;
3. the addon's ``sidestream.job._sidestream_call``: user, company, language, records and arguments, then the method;
4. flush, "done", COMMIT; hooks after the commit, whose errors no longer change what happened;
5. the locks are freed.

Our own statements go past Odoo's cursor to psycopg2's, so that a conflict is no error in Odoo's log.
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
import odoo.init  # first: it makes the package
import odoo.modules.loading
import odoo.sql_db
import odoo.tools
from odoo.modules.registry import Registry
from odoo.service.server import load_server_wide_modules

from sidestream.crashpoints import crash_point
from sidestream.errors import ActionError, SettingsError, StoreUnavailable, WireError
from sidestream.executors.acquire import check_still_ours, commit_end, locks_of, open_again, verdict_of
from sidestream.executors.application_fault import application_error, is_raised_in
from sidestream.executors.odoo import modules, prefetch
from sidestream.executors.odoo.error_messages import humanize_error
from sidestream.executors.odoo.model_action import ModelAction, collect
from sidestream.executors.odoo.session import OdooSession
from sidestream.executors.partial_commit import Parts
from sidestream.executors.protocol import Acquired, ActionFacts, NotNow, NotYet, SessionLost, Verdict
from sidestream.executors.session import VERIFY_TIMEOUT, Session
from sidestream.job.codec import decode_payload
from sidestream.job.names import tag
from sidestream.job.observer import JobFailure
from sidestream.job.outcome import Release, ReleaseReason
from sidestream.job.reference import Reference
from sidestream.process import share_memory
from sidestream.store import acquire, outcomes, sessions
from sidestream.store.acquire import AcquireResult
from sidestream.store.adapter import UNDEFINED_TABLE, server_options, sqlstate

log = logging.getLogger(__name__)

ADDON = "sidestream"
JOB_MODEL = "sidestream.job"
UPGRADE_DELAY_MS = 2000
"""Milliseconds after which a job is looked at again while modules are being installed, upgraded or removed."""


ZYGOTE = "sidestream/zygote"
"""What the zygote's sessions are called."""


@contextlib.contextmanager
def _states_left_alone() -> Iterator[None]:
    """Keep Odoo from setting the states of modules back when a registry cannot be loaded: they are somebody else's."""
    reset = odoo.modules.loading.reset_modules_state
    odoo.modules.loading.reset_modules_state = lambda database: None
    try:
        yield
    finally:
        odoo.modules.loading.reset_modules_state = reset


class Body:
    """What one acquired job carries through run and commit."""

    __slots__ = ("action", "along", "args", "kwargs", "locks", "name", "parts", "row")

    def __init__(
        self, name: str, action: ModelAction, row: acquire.Acquired, along: prefetch.Prefetched, locks: list[bytes]
    ) -> None:
        self.name = name
        self.action = action
        self.row = row
        self.along = along
        #: Session-level locks to free when the job ended.
        self.locks = locks
        self.parts = Parts()
        self.args, self.kwargs = decode_payload(row.payload)


class OdooOrm:
    """Runs declared methods of models. See :class:`~sidestream.executors.protocol.Executor` for each method."""

    def __init__(
        self, config: Path, database: str, *, database_tag: bytes, dsn: str, application_name: Callable[[int], str]
    ) -> None:
        """Prepare; nothing is loaded or connected yet.

        Args:
            config: Odoo's configuration file.
            database: Name of the database.
            database_tag: What references to its rows carry.
            dsn: The same database for our own connections.
            application_name: What the sessions of the child in a slot are called.
        """
        self.stale = False
        self.on_backend: Callable[[int], None] = lambda pid: None
        self.on_guard: Callable[[int], None] = lambda pid: None
        self._config = config
        self._database = database
        self._tag = database_tag
        self._dsn = dsn
        self._application_name = application_name
        self._name = ""
        self._actions: dict[bytes, tuple[str, ModelAction]] = {}
        self._registry: Any = None
        #: What is read along with a job, by the name of its action.
        self._along: dict[str, tuple[str, ...]] = {}
        self._odoo: OdooSession
        self._locks: Session

    # -- once ----------------------------------------------------------------------------------------------------

    def load(self) -> Sequence[ActionFacts]:
        """Load Odoo and the database's registry; leave no connection open."""
        registry = self._registry = self._load_registry()
        if ADDON not in registry._init_modules:
            raise SettingsError(
                f"The addon {ADDON!r} is not installed in the database {self._database!r}; "
                f"run: odoo -d {self._database} -i {ADDON}"
            )
        actions = collect(registry.models)
        self._actions = {tag(name, 4): (name, action) for name, action in actions.items()}
        self._along = {name: self._along_of(registry[name.rpartition(".")[0]]) for name in actions}
        self._warm_up({name.rpartition(".")[0] for name in actions})
        odoo.sql_db.close_all()  # a connection that parent and child share would be one session for both
        share_memory()
        return [ActionFacts(name, tag(name, 4), a.hard_limit, a.retry, a.queue) for name, a in actions.items()]

    def _along_of(self, model: Any) -> tuple[str, ...]:
        table = model._table if self._has_table(model) else None
        return prefetch.expressions(tuple(self._registry.cache_sequences), table)

    @staticmethod
    def _has_table(model: Any) -> bool:
        return bool(model._auto and not model._abstract)  # else its records come from a query, which is Odoo's to ask

    def _warm_up(self, models: Collection[str]) -> None:
        """Fill what Odoo fills when it is first used, so that children share it and their first jobs need not wait.

        Only reads. What was cached is checked by the first job: the registry knows the signals from before.
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
                    if self._has_table(env[model]):  # a query may be slow; a table's first row never is
                        env[model].with_context(active_test=False).search([], limit=1, order="id").fetch()
        except Exception as error:  # noqa: BLE001  # an override that wants more than a superuser who reads: no matter
            log.info("Not everything could be read in advance: %s", error, extra={"action": "warm_up_failed"})

    def _load_registry(self) -> Any:
        arguments = ["-c", str(self._config), "-d", self._database, "--no-http"]
        odoo.tools.config.parse_config(arguments, setup_logging=False)
        self._connect_as(ZYGOTE)
        self._check_modules()
        try:
            load_server_wide_modules()
            with _states_left_alone():
                return Registry(self._database)
        except Exception as error:
            self._check_modules()  # somebody began to change them meanwhile
            if is_raised_in("odoo.addons", error):
                raise application_error(f"An addon in the database {self._database!r}", error) from error
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise SettingsError(
                f"The database {self._database!r} cannot be loaded as an Odoo database ({first}); check its name, and "
                f"what {self._config} says of PostgreSQL."
            ) from error

    def _check_modules(self) -> None:
        try:
            hindrance = modules.what_hinders(self._dsn, ZYGOTE)
        except StoreUnavailable as error:
            raise NotYet(str(error)) from error
        if hindrance is not None:
            raise NotYet(hindrance)

    def begin(self, slot: int) -> None:
        """Name this child's sessions; they are acquired by the first job that needs them."""
        name = self._name = self._application_name(slot)
        self._connect_as(name)
        # The registry keeps what it connected with in the zygote, under the zygote's name.
        self._registry._db = odoo.sql_db.db_connect(self._database)
        threading.current_thread().dbname = self._database  # type: ignore[attr-defined]  # for Odoo's log lines
        self._locks = Session(self._dsn, name, lambda pid: self.on_guard(pid))
        conflict = odoo.exceptions.ConcurrencyError
        self._odoo = OdooSession(self._registry, self._tag, lambda pid: self.on_backend(pid), conflict)

    @staticmethod
    def _connect_as(name: str) -> None:
        odoo.tools.config["db_app_name"] = name
        # libpq reads it for every connection of this process: a vanished worker's backend notices soon (design D7).
        os.environ["PGOPTIONS"] = server_options(os.environ.get("PGOPTIONS", ""))

    # -- each job ------------------------------------------------------------------------------------------------

    def acquire(self, reference: bytes, payload: bytes | None, *, attempts: int, run_alone: bool) -> Acquired | Verdict:
        """Lock and read the job."""
        try:
            ref = Reference.unpack(reference)
        except WireError as error:
            return Release(f"{ReleaseReason.UNROUTED}: {error}")
        known = self._actions.get(ref.action)
        if known is None or ref.direct:
            return Release(f"{ReleaseReason.UNROUTED}: no worker here knows its action")
        name, action = known
        if ref.database != self._tag:
            return Release(f"{ReleaseReason.UNROUTED}: it belongs to another database")
        locks = locks_of(ref, between_transactions=action.three_step or action.commits == "relock")
        if not self._locks.try_locks(locks):
            return Release(ReleaseReason.LOCKED, None)
        try:
            found = self._acquire_row(ref.id, name)
            commit_end(found, self._odoo.commit)
            verdict = verdict_of(found, ref, run_alone=run_alone)
            if verdict is None:
                assert isinstance(found, acquire.Acquired)
                along = prefetch.read(found.along)
                verdict = self._fresh(along)
                if verdict is None:
                    crash_point("child.acquired")
                    return self._acquired(Body(name, action, found, along, locks))
        except WireError as error:
            verdict = Release(f"{ReleaseReason.UNROUTED}: {error}")
        except BaseException:
            self.reset()
            self._locks.unlock_all(locks)
            raise
        self.reset()
        self._locks.unlock_all(locks)
        return verdict

    def _acquired(self, body: Body) -> Acquired:
        action, row = body.action, body.row
        acquired = Acquired(body.name, row.attempts, action.soft_limit, action.retry, body, queue=row.queue)
        acquired.forgiven = row.forgiven
        part = (lambda: self._part(acquired)) if action.commits == "relock" else None
        self._odoo.guard.begin(body.name, acquired.follow_ups, row.requested_by or row.user_id, part)
        return acquired

    def run(self, acquired: Acquired) -> None:
        """Call the method, or the three steps of it."""
        with self._worded(acquired.body):
            self._odoo.guarded(lambda: self._call(acquired))
        crash_point("child.ran")

    def commit(self, acquired: Acquired) -> None:
        """Write "done" and commit; then run the hooks and tell other processes what changed."""
        body: Body = acquired.body
        session = self._odoo
        with self._worded(body):
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
        """Find out whether the commit that got no reply happened."""
        session, lost = self._locks, self._odoo.backend
        self._odoo.drop()

        def read() -> bool:
            cursor = session.cursor
            sessions.terminate_backend(cursor, lost, self._name)
            return acquire.state_when_unlocked(cursor, acquired.body.row.id, timeout=VERIFY_TIMEOUT) != "pending"

        return session.guarded(read)

    def reset(self) -> None:
        """Roll back, or drop the cursor when that fails."""
        self._odoo.guard.end()
        self._odoo.rollback()

    def release_locks(self, acquired: Acquired) -> None:
        """Free the job's key."""
        self._locks.unlock_all(acquired.body.locks)

    @property
    def hears_failures(self) -> bool:
        """Whether an addon overrides ``sidestream.job._on_failed``."""
        base, found = "odoo.addons.sidestream.", self._registry[JOB_MODEL]._on_failed
        return not found.__module__.startswith(base)

    def job_failed(self, failure: JobFailure) -> None:
        """Call ``_on_failed`` of the job's record as the superuser, in a transaction of its own."""
        try:
            with self._registry.cursor() as cursor:
                odoo.api.Environment(cursor, odoo.SUPERUSER_ID, {})[JOB_MODEL].browse(failure.id)._on_failed()
        except Exception:
            log.exception("A failure hook failed.", extra={"action": "failure_hook_failed"})

    def close(self) -> None:
        """Close the connections."""
        self._odoo.drop()
        self._locks.close()

    def _committed(self, body: Body) -> None:
        """Run the hooks after a commit. The effect is there: nothing that fails now may start it again."""
        try:
            self._odoo.committed()
        except Exception:
            log.exception(
                "Job %s (%s) committed, but a hook after its commit failed; what it did is not repeated.",
                body.row.id,
                body.name,
                extra={"action": "hook_failed"},
            )
            self._odoo.rollback()

    @contextlib.contextmanager
    def _worded(self, body: Body) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            humanize_error(error, odoo.exceptions.RedirectWarning, lambda: self._env_for_words(body))
            raise

    def _env_for_words(self, body: Body) -> Any:
        self._odoo.rollback()
        context = {"lang": json.loads(body.row.context or "{}").get("lang")}
        return odoo.api.Environment(self._odoo.cr, odoo.SUPERUSER_ID, context)

    # -- opening -------------------------------------------------------------------------------------------------

    def _check_locks(self, body: Body) -> None:
        """A job whose guard connection died holds its key no more."""
        if body.locks and not self._locks.alive():
            raise SessionLost(
                f"Job {body.row.id} lost the connection that holds its key; nothing more was committed.",
                self._locks.told,
            )

    def _acquire_row(self, row_id: int, name: str) -> AcquireResult:
        session = self._odoo
        try:
            return session.guarded(lambda: acquire.acquire_job(session.store, row_id, along=self._along[name]))
        except Exception as error:
            if sqlstate(error) != UNDEFINED_TABLE:
                raise
        # The table of its records is gone. If that is more than this worker missing a change, Odoo will tell the job.
        session.rollback()
        self._along[name] = prefetch.expressions(tuple(self._registry.cache_sequences), None)
        return session.guarded(lambda: acquire.acquire_job(session.store, row_id, along=self._along[name]))

    def _fresh(self, along: prefetch.Prefetched) -> Release | None:
        """Look at what other processes did since: a new registry, other caches, modules on the way."""
        if along.modules_change:
            return Release(
                f"{ReleaseReason.PAUSED}: modules are being installed, upgraded or removed", UPGRADE_DELAY_MS
            )
        registry = self._registry
        if along.registry != registry.registry_sequence:
            self.stale = True
            return Release(ReleaseReason.STOPPING)
        if along.caches != list(registry.cache_sequences.values()):
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
            user_active=body.along.user_active,
            gone=body.along.gone,
        )
        if steps := body.action.steps_of(body.name, result):
            self._three_steps(body, steps, jobs._sidestream_idempotency_key(row.id))

    def _three_steps(self, body: Body, steps: Generator[Any, Any, Any], key: str) -> None:
        session = self._odoo
        try:
            call = next(steps)
        except StopIteration:
            return  # there was nothing to call
        if not callable(call):
            raise ActionError(
                f"The three-step action {body.name!r} yielded {call!r:.60}; expected a function that is called with "
                "the idempotency key, outside any transaction."
            )
        # The first step may not write: this ends its snapshot and frees its row. Nobody is called without the locks.
        self._end_transaction()
        self._check_locks(body)
        with session.guard.outside():
            answer = call(key)
        self._open_again(body)
        try:
            steps.send(answer)
        except StopIteration:
            return
        raise ActionError(f"The three-step action {body.name!r} yielded twice; expected one call: make two jobs of it.")

    def _part(self, acquired: Acquired) -> None:
        """A commit that was declared: what was done so far, then lock and check again."""
        session = self._odoo
        with acquired.body.parts.turn():
            session.guarded(session.cr.flush)
            self._check_locks(acquired.body)
            session.commit()
            self._committed(acquired.body)
            self._open_again(acquired.body)

    def _end_transaction(self) -> None:
        """End a transaction that wrote nothing, and with it its snapshot; the cursor stays."""
        session = self._odoo
        session.guarded(lambda: session.guard.rollback(session.cr))
        session.registry.reset_changes()

    def _open_again(self, body: Body) -> None:
        self._check_locks(body)
        session, row = self._odoo, body.row
        along = prefetch.expressions(tuple(self._registry.cache_sequences), None)
        found = open_again(
            lambda: session.guarded(
                lambda: acquire.acquire_job(session.store, row.id, attempts_seen=row.attempts, along=along)
            ),
            self._end_transaction,
        )
        check_still_ours(row, found)
        assert isinstance(found, acquire.Acquired)
        verdict = self._fresh(prefetch.read(found.along))
        if verdict is not None:
            raise NotNow(verdict)
