"""Build a worker from the settings: broker, store, maintenance, supervisor and zygote."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgpack
import psycopg

from sidestream import process
from sidestream.broker.failover import FailoverBroker, owners_grace
from sidestream.broker.postgres.broker import PostgresBroker
from sidestream.broker.protocol import Delivery, lane
from sidestream.broker.redis import embedded
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.keys import PREFIX
from sidestream.clock import SystemClock
from sidestream.errors import BrokerError, BrokerUnavailable, FormatUnknown, SettingsError, StoreError, StoreUnavailable
from sidestream.job.observer import JobFailure
from sidestream.job.reference import NO_TAG8
from sidestream.logs import shown_database, shown_url
from sidestream.maintenance.cancellations import CancellationTask
from sidestream.maintenance.expiry import ExpiryTask
from sidestream.maintenance.identity import IdentityCheck
from sidestream.maintenance.lease_reclaimer import LeaseReclaimer
from sidestream.maintenance.reconciler import Reconciler
from sidestream.maintenance.retention import RetentionTask
from sidestream.maintenance.rule_sync import RuleSync
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.maintenance.task import MaintenanceTask, MaintenanceThread
from sidestream.maintenance.turns import InTurn, Turn
from sidestream.maintenance.worker_deaths import WorkerDeaths
from sidestream.settings import Settings
from sidestream.store import adapter, deaths, schema, sessions
from sidestream.wiring.client import store_url
from sidestream.wiring.data_folder import owner_of, signing_keys
from sidestream.worker import zygote
from sidestream.worker.options import WorkerOptions, application_name
from sidestream.worker.run_dir import DeadWorkers, RunFolder
from sidestream.worker.supervisor import Supervisor
from sidestream.worker.troubles import Troubles

log = logging.getLogger(__name__)

ZYGOTE = "from sidestream.wiring.zygote import run_zygote; run_zygote()"
HOST_LIMIT = 22
"""Most characters of the host's name in a worker's name."""
BANNER_ACTIONS = 20
"""Most actions named in the first log line."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Shortest and longest seconds between two attempts to connect to PostgreSQL at the start."""
YIELDING = 6.0
"""A worker that cannot write outcomes competes for the lease reclaimer's turn in one of so many seconds only."""
EMBEDDED_INTERVAL = 1.0
"""Seconds between two checks of the embedded server."""


class EmbeddedServerTask:
    """Restarts the embedded server when it has ended."""

    name = "embedded server"
    every = EMBEDDED_INTERVAL

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def step(self) -> bool:
        """Start the server unless its lock is held; see ``MaintenanceTask``."""
        embedded.ensure(self._settings.data_dir)
        return False


class DeadWorkersTask:
    """Kills the processes of dead workers on this host, and later removes their folders."""

    name = "dead workers' folders"
    every = 1.0

    def __init__(self, dead_workers: DeadWorkers, reclaimer: LeaseReclaimer, kept: float) -> None:
        self._dead_workers = dead_workers
        self._reclaimer = reclaimer
        self._kept = kept

    def step(self) -> bool:
        """Check once; see :class:`~sidestream.maintenance.task.MaintenanceTask`."""
        self._dead_workers.scan()
        self._dead_workers.tidy(self._kept, self._reclaimer.clear_since)
        return False


class Worker:
    """A worker: a supervisor and its maintenance. ``prefix`` is that of its Redis keys."""

    def __init__(self, settings: Settings, *, prefix: str = PREFIX) -> None:
        if settings.app is None and settings.odoo_config is None:
            raise SettingsError(
                "No application is configured; pass --app or set SIDESTREAM_APP, for example myapp.jobs:actions, or "
                "pass --odoo-config and --odoo-database."
            )
        if settings.odoo_config is not None and settings.odoo_database is None:
            raise SettingsError("No Odoo database is configured; pass --odoo-database or set SIDESTREAM_ODOO_DATABASE.")
        self._settings = settings
        self._prefix = prefix
        self._store_url = store_url(settings)
        owner_of(settings, worker=True)
        process.drop_privileges(settings.user, settings.data_dir, required="user" in settings.model_fields_set)
        self._keys = signing_keys(settings)
        process.check_nice(settings.nice)
        if settings.idle_cpu_only:
            process.check_idle_cpu_only()
        self._tenant = embedded.join(settings.data_dir) if settings.redis_url is None else None
        self._store: StoreConnection | None = None
        try:
            self._prepare()
        except BaseException:
            self._leave_store()
            self._leave_server()
            raise

    def _prepare(self) -> None:
        """Connect to the servers and build the parts."""
        settings = self._settings
        # Short enough for "sidestream/<name>/supervisor" to be a PostgreSQL application name (63 bytes).
        self._name = f"{socket.gethostname()[:HOST_LIMIT]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._database = self._await_store()
        tags = [] if self._database is None else [self._database.tag]
        if settings.odoo_config is None:
            tags.append(NO_TAG8)  # direct jobs
        self._lanes = tuple(lane(tag, queue) for tag in tags for queue in settings.queues)
        self._primary = self._redis()
        self._broker = FailoverBroker(
            self._primary, self._fallback(), SystemClock(), longest_pause=settings.renew_interval
        )
        self._maintenance_broker = self._redis_broker()
        if self._database is not None:
            connect = self._connector("maintenance", adapter.ANSWER_AT_LENGTH)
            self._store = StoreConnection(connect, on_open=lambda cursor: deaths.enter(cursor, self._name))
        self._turns: list[Turn] = []
        self._failed_early: list[JobFailure] | None = []
        self._dead_workers = DeadWorkers(settings.data_dir)
        unclean = self._dead_workers.scan()
        self._deaths = self._charge_deaths()
        unclean = unclean or (self._deaths is not None and self._deaths.found)
        self._folder = RunFolder(settings.data_dir, self._name)
        self._supervisor = Supervisor(
            self._options(unclean),
            self._broker,
            zygote_command=[sys.executable, "-c", ZYGOTE],
            zygote_orders=self._orders(),
            connect=self._connector("supervisor") if self._store_url else None,
            probe=self._broker.probe,
            on_stale_generation=self._on_stale_generation,
        )
        self._maintenance = MaintenanceThread(
            make_maintenance_tasks(
                settings,
                worker=self._name,
                lanes=self._lanes,
                broker=self._maintenance_broker,
                store=self._store,
                database=self._database,
                dead_workers=self._dead_workers,
                stop_running=self._supervisor.stop_running,
                writes=self._supervisor.writes,
                on_adopted=self._supervisor.replace,
                on_failed=self._failed,
                on_direct_failed=self._supervisor.delivery_failed,
                turns=self._turns,
                worker_deaths=self._deaths,
            )
        )

    def run(self) -> bool:
        """Work until stopped; see :meth:`Supervisor.run`.

        Returns whether a new worker should replace this one, because the database was adopted.
        """
        try:
            self._supervisor.run(on_loaded=self._begin)
        finally:
            if self._maintenance.stop():
                self._give_turns_back()
                self._leave_store()
            self._broker.close()
            self._maintenance_broker.close()
            # Leases that could not be returned to Redis are reclaimed later; the folder shows that no job of them runs.
            self._folder.remove(leases_left=self._broker.away_since is not None)
            self._leave_server()
        log.info("Worker %s has stopped.", self._name, extra={"action": "worker_stopped"})
        return self._supervisor.replaced

    def _begin(self) -> None:
        """Log what is served, run missed failure hooks and start maintenance, after the load."""
        self._log_start()
        failed, self._failed_early = self._failed_early, None
        for failure in failed or ():
            self._supervisor.failed(failure)
        self._maintenance.start()

    def _log_start(self) -> None:
        """Log what an operator needs to know about this worker, without passwords."""
        settings, actions = self._settings, self._supervisor.action_names()
        shown = ", ".join(actions[:BANNER_ACTIONS]) + (", ..." if len(actions) > BANNER_ACTIONS else "")
        facts: dict[str, object] = {
            "worker": self._name,
            "queues": ", ".join(settings.queues),
            "children": settings.children,
            "version": version("sidestream"),
            "user": process.account_of(os.geteuid()).name,
            "database": "none" if self._store_url is None else shown_database(self._store_url),
            "redis": shown_url(self._url),
            "action_count": len(actions),
            "actions": shown,
        }
        log.info(
            "Worker %s serves %s (children: %s, Sidestream %s, user %s, database %s, Redis %s, actions (%s): %s).",
            *facts.values(),
            extra={"action": "worker_started", **facts},
        )

    def _failed(self, failure: JobFailure) -> None:
        """Report a job that maintenance failed, once the application and its hooks are loaded."""
        if self._failed_early is None:
            self._supervisor.failed(failure)
        else:
            self._failed_early.append(failure)

    def _leave_server(self) -> None:
        """Stop the embedded server if no other worker uses it."""
        if self._tenant is not None:
            self._tenant.stop_if_last()

    def _give_turns_back(self) -> None:
        """Let other workers continue the maintenance immediately."""
        if self._broker.away_since is None:
            with contextlib.suppress(BrokerError):  # the turns expire
                for turn in self._turns:
                    turn.give_back()

    def _leave_store(self) -> None:
        """Record in PostgreSQL that nothing of this worker runs any more."""
        if self._store is None:
            return
        try:
            with self._store.cursor("leaving") as cursor:
                deaths.leave(cursor, self._name)
        except StoreError as error:
            # Another worker notices it.
            log.info(
                "Could not record in PostgreSQL that this worker stops: %s", error, extra={"action": "worker_not_left"}
            )
        self._store.close()

    def _charge_deaths(self) -> WorkerDeaths | None:
        """Charge the jobs that killed earlier workers before anything is claimed."""
        if self._store is None or self._database is None:
            return None
        served = f"{WorkerDeaths.name} {self._database.tag.hex()}"
        self._turns.append(Turn(self._maintenance_broker, served, self._name, WorkerDeaths.every))
        found = WorkerDeaths(
            self._store,
            dead_here=self._dead_workers.unclean,
            announced=self._maintenance_broker.is_alive,
            turn=self._turns[-1].take,
            on_failed=self._failed,
        )
        try:
            found.charge()
        except StoreError as error:
            log.warning("The search for dead workers is postponed: %s", error, extra={"action": "worker_deaths_later"})
        return found

    def _await_store(self) -> schema.Database | None:
        """Wait until PostgreSQL answers, and identify the database."""
        troubles, pause = Troubles(log), SHORTEST_PAUSE
        while True:
            try:
                found = self._identify()
            except StoreUnavailable as error:
                troubles.met("store_awaited", "This worker waits for PostgreSQL: %s", error)
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                troubles.over("store_awaited", "PostgreSQL can be used")
                return found

    def _identify(self) -> schema.Database | None:
        if self._store_url is None:
            return None
        settings = self._settings
        with self._connector("start")() as connection, connection.cursor() as cursor:
            if settings.odoo_config is not None and not schema.installed(cursor):
                raise SettingsError(
                    f"The addon 'sidestream' is not installed in the database {settings.odoo_database!r}; "
                    f"run: odoo -c {settings.odoo_config} -d {settings.odoo_database} -i sidestream"
                )
            try:
                with connection.transaction():
                    return schema.settle_in(cursor, settings.instance)
            except psycopg.Error as error:
                raise adapter.translate(error, "starting a worker", connection) from error

    def _redis(self) -> RedisBroker:
        settings = self._settings
        self._url = settings.redis_url or embedded.ensure(settings.data_dir)
        broker = self._redis_broker()
        try:
            broker.probe()
            broker.generation()  # read at the start: a later change means that Redis was emptied
        except FormatUnknown as error:
            log.warning("%s This worker waits.", error, extra={"action": "format_unknown"})
        except BrokerUnavailable as error:
            if self._database is None:
                raise
            log.warning(
                "%s Jobs are taken from PostgreSQL in the meantime.", error, extra={"action": "redis_away_at_start"}
            )
        return broker

    def _redis_broker(self) -> RedisBroker:
        lease_ms = round(self._settings.lease * 1000)
        return RedisBroker(self._url, timeout=self._settings.redis_timeout, lease_ms=lease_ms, prefix=self._prefix)

    def _fallback(self) -> PostgresBroker | None:
        if self._database is None:
            return None
        return PostgresBroker(self._connector("claims"), self._database)

    def _connector(self, what: str, answer: float = adapter.ANSWER) -> Callable[[], psycopg.Connection[Any]]:
        url = self._store_url
        assert url is not None

        def connect() -> psycopg.Connection[Any]:
            return adapter.connect_bounded(url, application_name(self._name, what), answer=answer)

        return connect

    def _options(self, unclean: bool) -> WorkerOptions:
        settings = self._settings
        return WorkerOptions(
            worker=self._name,
            lanes=self._lanes,
            run_folder=self._folder.path,
            children=settings.children,
            lease=settings.lease,
            renew_interval=settings.renew_interval,
            hard_limit=settings.hard_limit,
            drain_timeout=settings.drain_timeout,
            prefetch=settings.prefetch,
            batch=settings.batch,
            recovery_period=settings.recovery_period,
            after_unclean_end=unclean,
        )

    def _orders(self) -> bytes:
        settings = self._settings
        orders = zygote.Orders(
            self._name,
            settings.children,
            settings.nice,
            settings.idle_cpu_only,
            settings.child_max_jobs,
            int(settings.child_max_memory),
        )
        application = (
            settings.app,
            None if settings.odoo_config is None else str(settings.odoo_config),
            settings.odoo_database,
            None if self._database is None else self._database.tag,
            self._store_url,
            self._keys,
            str(Path.cwd()),
            settings.log_level,
            settings.log_format,
            settings.quiet_jobs,
        )
        packed: bytes = msgpack.packb((orders, application))
        return packed

    def _on_stale_generation(self) -> None:
        for name in (RuleSync.name, Reconciler.name):
            self._maintenance.poke(name)


def make_maintenance_tasks(
    settings: Settings,
    *,
    worker: str,
    lanes: Sequence[str],
    broker: RedisBroker,
    store: StoreConnection | None,
    database: schema.Database | None,
    dead_workers: DeadWorkers,
    stop_running: Callable[[int], bool],
    writes: Callable[[], bool] = lambda: True,
    on_adopted: Callable[[], None],
    turns: list[Turn],
    worker_deaths: WorkerDeaths | None = None,
    on_failed: Callable[[JobFailure], None] = lambda failure: None,
    on_direct_failed: Callable[[Delivery, int, str], None] = lambda delivery, attempts, error: None,
) -> list[MaintenanceTask]:
    """Return the maintenance tasks of one worker; it must not share ``broker`` and ``store``.

    One worker at a time does the tasks that concern a whole database; their claims are appended to ``turns``.
    """
    clock, grace, direct = SystemClock(), owners_grace(settings.renew_interval), settings.odoo_config is None
    served = " ".join(sorted(lanes))

    def turn(task: str, every: float) -> Turn:
        turns.append(Turn(broker, task, worker, every))
        return turns[-1]

    reclaims = turn(f"{LeaseReclaimer.name} {served}", LeaseReclaimer.every)
    reclaimer = LeaseReclaimer(
        broker,
        store,
        clock,
        worker=worker,
        lanes=lanes,
        dead_workers=dead_workers.running,
        alive=broker.is_alive,
        # What a worker cannot write, another one takes over: it also ends the sessions that hold the rows.
        turn=lambda: (writes() or time.monotonic() % YIELDING < 1) and reclaims.take(),
        lease=settings.lease,
        grace=grace,
        on_failed=on_failed,
        on_direct_failed=on_direct_failed,
    )
    maintenance: list[MaintenanceTask] = [
        reclaimer,
        DeadWorkersTask(dead_workers, reclaimer, 2 * settings.lease + grace),
    ]
    if settings.redis_url is None:
        maintenance.append(EmbeddedServerTask(settings))
    if store is None or database is None:
        return [*maintenance, RuleSync(broker, None, direct=direct)]
    tended = database.tag.hex() + " direct" * direct
    shared: list[MaintenanceTask] = [
        RuleSync(broker, store, direct=direct),
        Reconciler(
            broker,
            store,
            clock,
            every=settings.reconcile_interval,
            lease=settings.lease,
            renew_interval=settings.renew_interval,
            direct=direct,
            alone=lambda cursor: not sessions.has_others(cursor, worker),
        ),
        ExpiryTask(broker, store),
        RetentionTask(store, done_retention=settings.done_retention, failed_retention=settings.failed_retention),
    ]
    maintenance += [InTurn(task, turn(f"{task.name} {tended}", task.every)) for task in shared]
    maintenance += [worker_deaths] if worker_deaths is not None else []
    return [*maintenance, CancellationTask(store, stop_running=stop_running), IdentityCheck(store, on_adopted)]
