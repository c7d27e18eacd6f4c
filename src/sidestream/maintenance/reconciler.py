"""Make the broker match the rows.

One bit a row says that the broker was given its reference. So nothing here remembers how far it came: every pending row
without its bit is published, whatever order transactions committed in. See docs/explanation/reconciler.md.

Each step looks at the generation first, then does one of these:

1. nobody began a generation: begin one;
2. the generation is new and not synced: wait one renew interval, in which workers state what they hold (not when we
   have just started and no other worker is there), then compare every chunk of ids, then mark it synced;
3. the server's run id changed, its contents kept: compare every chunk, as fast as the step's budget allows;
4. otherwise: compare the newest chunk and a few of the others in turn, and look for rows that are overdue although
   their bit is set.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from sidestream.broker.protocol import Broker
from sidestream.clock import Clock
from sidestream.crashpoints import crash_point
from sidestream.maintenance.generation import Contents, current_generation, follow, served_databases
from sidestream.maintenance.overdue_rows import OverdueRows
from sidestream.maintenance.store_connection import Cursor, StoreConnection
from sidestream.maintenance.task import check_times
from sidestream.relay.publications import publication_of
from sidestream.store import queries
from sidestream.store.job_row import JobRow

log = logging.getLogger(__name__)

HORIZON = timedelta(minutes=15)
"""What is due later than that from now stays in PostgreSQL: a small Redis, and its edits are one UPDATE. Not so a job
with a key that was started before: those behind it have to find it there."""
PUBLISH_LOT = 500
"""Most references in one publish: about 3 ms of Redis's time."""
GRACE = 1.25
"""How many renew intervals a new generation waits: every worker renews once in one, and gets a moment for it."""
BUSY_BUDGET = 0.5
"""Seconds after which a step that rebuilds or compares everything makes room for the other maintenance."""
IDLE_BUDGET = 0.03
"""Seconds after which an ordinary step takes no further chunk."""


class Reconciler:
    """Publish the pending jobs that the broker does not know.

    Settings: ``reconcile_interval = "1s"``, ``lease = "15s"``, ``renew_interval = "3s"``.
    """

    name = "reconciler"

    def __init__(
        self,
        broker: Broker,
        store: StoreConnection,
        clock: Clock,
        *,
        every: float = 1.0,
        lease: float = 15.0,
        renew_interval: float = 3.0,
        direct: bool = False,
        alone: Callable[[Cursor], bool] = lambda cursor: False,
    ) -> None:
        """Keep ``broker`` true to the rows behind ``store``.

        ``broker`` belongs to maintenance alone: asking an object for the generation makes it accept a new one, but the
        worker's object has to see the change, so that the worker states what it holds. ``direct``: jobs
        without a database are served here too; they have no rows, but their limits wait for what others state.
        ``alone``: whether no other worker is there that could have something to state.
        """
        check_times(self.name, lease=lease, renew_interval=renew_interval)
        self.every = every
        self._broker = broker
        self._store = store
        self._clock = clock
        self._renew_interval = renew_interval
        self._direct = direct
        self._alone = alone
        self._contents = Contents()
        #: Chunks to compare as fast as the budget allows; None when nothing is urgent.
        self._urgent: deque[int] | None = None
        #: The chunk that the rotation compared last.
        self._compared_last = -1
        self._overdue = OverdueRows(broker, store, clock, lease, partial(self._publish, force=True))
        #: The last step had no time to look for overdue rows.
        self._overdue_first = False

    def step(self) -> bool:
        """Do one bounded step; return whether more can be done at once."""
        self._check_generation()
        if self._contents.build_at is not None:
            if self._clock.monotonic() < self._contents.build_at:
                return False
            self._contents = replace(self._contents, build_at=None, building=True, everything=True)
        with self._store.cursor("comparing Redis with the rows") as cursor:
            if self._contents.everything:
                self._urgent = deque(reversed(queries.pending_chunks(cursor)))
                self._contents = replace(self._contents, everything=False)
            if self._urgent is not None:
                return self._compare_all(cursor, self._urgent)
            return self._compare_in_rotation(cursor)

    def _check_generation(self) -> None:
        """Notice when the generation or the server changed since the last step."""
        databases = served_databases(self._store, direct=self._direct)
        found = current_generation(self._broker, databases)
        synced = all(database.hex() in found.synced for database in databases)
        new, first = found.number != self._contents.number, not self._contents.number
        # Workers reassert their jobs in the meantime, so that a running job is not handed out as well. When this
        # worker has just started, only other workers can have jobs to reassert.
        wait = 0.0 if first and not synced and self._has_no_others() else GRACE * self._renew_interval
        self._contents = follow(self._contents, found, synced=synced, build_at=self._clock.monotonic() + wait)
        if new:
            self._urgent = None
            self._overdue.forget()
            log.info(
                "The broker's contents are of generation %s, %s.",
                found.number,
                "complete" if synced else "to be published from the rows",
                extra={"action": "generation_found"},
            )

    def _has_no_others(self) -> bool:
        with self._store.cursor("looking for other workers") as cursor:
            return self._alone(cursor)

    def _compare_all(self, cursor: Cursor, urgent: deque[int]) -> bool:
        """Compare chunk after chunk until the budget is used; True when there are more."""
        deadline = self._clock.monotonic() + BUSY_BUDGET
        while urgent:
            if not self._compare(cursor, urgent[0], deadline):
                return True
            urgent.popleft()
            if urgent and self._clock.monotonic() >= deadline:
                return True
        self._urgent = None
        if self._contents.building:
            for database in served_databases(self._store, direct=self._direct):
                self._broker.mark_synced(database)
            self._contents = replace(self._contents, building=False)
            log.info(
                "Every pending row is published in generation %s.",
                self._contents.number,
                extra={"action": "generation_built"},
            )
        return False

    def _compare_in_rotation(self, cursor: Cursor) -> bool:
        """Compare the newest chunk, some others in turn, and look for overdue rows; True when a lot was missing."""
        began = self._clock.monotonic()
        overdue_first, self._overdue_first = self._overdue_first, False
        if overdue_first:
            self._overdue.publish(cursor)
        for number, chunk in enumerate(rotate(queries.pending_chunks(cursor), self._compared_last)):
            if number > 1 and self._clock.monotonic() - began >= IDLE_BUDGET:
                break
            if not self._compare(cursor, chunk, began + BUSY_BUDGET):
                return True
            if number:
                self._compared_last = chunk
        if not overdue_first:
            # With very many pending rows the two take turns.
            self._overdue_first = self._clock.monotonic() - began >= IDLE_BUDGET
            if not self._overdue_first:
                self._overdue.publish(cursor)
        return False

    def _compare(self, cursor: Cursor, chunk: int, deadline: float) -> bool:
        """Publish the chunk's pending rows whose bit is unset; False when the deadline came before the end."""
        # The bits first: read after the rows, the bit of a row that was settled in between would look unset.
        known = self._broker.published(self._store.database().tag, chunk)
        until, after = self._clock.now() + HORIZON, 0
        while missing := queries.unpublished(cursor, chunk, known, after, until, PUBLISH_LOT):
            self._publish(missing)
            after = missing[-1].id
            if len(missing) < PUBLISH_LOT:
                break
            if self._clock.monotonic() >= deadline:
                return False
        return True

    def _publish(self, rows: Sequence[JobRow], *, force: bool = False) -> None:
        database = self._store.database()
        crash_point("reconcile.before_publish")
        self._broker.publish([publication_of(row, database) for row in rows], force=force)
        crash_point("reconcile.published")


def rotate(chunks: Sequence[int], compared_last: int) -> list[int]:
    """Return ``chunks`` (ascending) as the newest, then the others, going on behind the one compared last."""
    others = chunks[:-1]
    behind = [chunk for chunk in others if chunk > compared_last]
    return [*chunks[-1:], *behind, *(chunk for chunk in others if chunk <= compared_last)]
