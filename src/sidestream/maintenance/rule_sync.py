"""Give the newest rules of the database to the broker: pauses, limits, weights, aging.

Their truth is a table in PostgreSQL (:mod:`sidestream.store.rules`). A change governs every host within half a second,
and an emptied broker has its rules before it grants anything.
"""

from __future__ import annotations

import logging

from sidestream.broker.protocol import Broker
from sidestream.job.rules import Rules
from sidestream.maintenance.generation import current_generation, served_databases
from sidestream.maintenance.store_connection import StoreConnection
from sidestream.store import rules

log = logging.getLogger(__name__)

EVERY = 0.5
"""Seconds between two looks: a change takes effect everywhere within one."""
AGAIN_EVERY = 30.0
"""Seconds after which rules are given again although nothing changed: whatever became of those that the broker had."""


class RuleSync:
    """Reads the rules' version; gives the rules on when it, or the broker's generation, changed."""

    name = "rule sync"
    every = EVERY

    def __init__(self, broker: Broker, store: StoreConnection | None, *, direct: bool) -> None:
        """Rule the lanes of the database behind ``store``, and with ``direct`` those of jobs without a database.

        ``broker`` belongs to maintenance alone, as the reconciler's. Without a database direct jobs have no rules.
        """
        self._broker = broker
        self._store = store
        self._direct = direct
        #: (generation, run id, version of the rules) that the broker was given last.
        self._given: tuple[int, str, int] | None = None
        self._steps = 0

    def step(self) -> bool:
        """Look once; see :class:`~sidestream.maintenance.task.MaintenanceTask`."""
        found = current_generation(self._broker)
        version = 0
        if self._store is not None:
            with self._store.cursor("reading the rules' version") as cursor:
                version = rules.version(cursor)
        self._steps += 1
        if self._steps * EVERY < AGAIN_EVERY and self._given == (found.number, found.run_id, version):
            return False
        wanted = self._rules()
        for database in served_databases(self._store, direct=self._direct):
            self._broker.configure(database, wanted)
        if self._given is None or self._given[2] != wanted.version:
            log.info("The rules of version %s govern.", wanted.version, extra={"action": "rules_given"})
            for sentence in wanted.skipped:
                log.warning("%s", sentence, extra={"action": "rule_skipped"})
        self._given, self._steps = (found.number, found.run_id, wanted.version), 0
        return False

    def _rules(self) -> Rules:
        if self._store is None:
            return Rules()
        with self._store.cursor("reading the rules") as cursor:
            return rules.read(cursor)
