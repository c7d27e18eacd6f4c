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
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

from sidestream.broker.protocol import Broker, Generation, Place, Publication
from sidestream.clock import Clock
from sidestream.crashpoints import crash_point
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import NO_TAG8, Reference
from sidestream.maintenance.store_connection import Cursor, StoreConnection
from sidestream.maintenance.task import check_times
from sidestream.relay.publications import publication_of
from sidestream.store import diagnosis, queries
from sidestream.store.bulk import note_reason
from sidestream.store.job_row import JobRow

log = logging.getLogger(__name__)

HORIZON = timedelta(minutes=15)
"""What is due later than that from now stays in PostgreSQL: a small Redis, and its edits are one UPDATE. Not so a job
with a key that was started before: those behind it have to find it there."""
PUBLISH_LOT = 500
"""Most references in one publish: about 3 ms of Redis's time."""
LOCATE_LOT = 100
"""Most references in one locate."""
OVERDUE_LOT = 500
"""Most overdue rows that one step looks for."""
HEADS_LOT = 50
"""Most keys whose heads one step looks at."""
GRACE = 1.25
"""How many renew intervals a new generation waits: every worker renews once in one, and gets a moment for it."""
BUSY_BUDGET = 0.5
"""Seconds after which a step that rebuilds or compares everything makes room for the other maintenance."""
LONGEST_RELEASE = 30.0
"""Longest delay, in seconds, of a release whose row does not say when the job is due again."""
IDLE_BUDGET = 0.03
"""Seconds after which an ordinary step takes no further chunk."""


def _never_alone(cursor: Cursor) -> bool:
    """Without anybody to ask, others may be there."""
    return False


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
        alone: Callable[[Cursor], bool] = _never_alone,
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
        self._lease = lease
        self._renew_interval = renew_interval
        self._direct = direct
        self._alone = alone
        self._number = 0
        self._run_id = ""
        #: The generation is not synced: once this monotonic time has come, everything is compared.
        self._build_at: float | None = None
        self._building = False
        #: Compare every chunk from the next step on.
        self._everything = False
        #: Chunks to compare as fast as the budget allows; None when nothing is urgent.
        self._urgent: deque[int] | None = None
        #: The chunk that the rotation compared last.
        self._compared_last = -1
        #: The last step had no time to look for overdue rows.
        self._overdue_first = False
        #: The overdue row that was looked for last, 0 at the begin of a lap.
        self._overdue_after = 0
        #: When rows were first missed (monotonic), by id: of this lap, and of the one before.
        self._missed: dict[int, float] = {}
        self._missed_before: dict[int, float] = {}

    def step(self) -> bool:
        """Do one bounded step; return whether more can be done at once."""
        self._check_generation()
        if self._build_at is not None:
            if self._clock.monotonic() < self._build_at:
                return False
            self._build_at, self._building, self._everything = None, True, True
        with self._store.cursor("comparing Redis with the rows") as cursor:
            if self._everything:
                self._urgent = deque(reversed(queries.pending_chunks(cursor)))
                self._everything = False
            if self._urgent is not None:
                return self._compare_all(cursor, self._urgent)
            return self._compare_in_rotation(cursor)

    def _check_generation(self) -> None:
        """Notice when the generation or the server changed since the last step."""
        databases = self._databases()
        found = self._broker.generation(databases)
        if found.number == 0:
            found = self._broker.begin_generation(databases)
        synced = all(database.hex() in found.synced for database in databases)
        if found.number != self._number:
            self._begin(found, synced=synced)
        elif found.run_id != self._run_id:
            # Restarted or failed over: a second or so of what it held may be gone, bits and references alike.
            self._run_id = found.run_id
            self._everything = True
        if synced:  # by the first worker; our comparison goes on, but no job waits for it
            self._build_at, self._building = None, False

    def _databases(self) -> list[bytes]:
        own = self._store.database().tag
        return [own, NO_TAG8] if self._direct else [own]

    def _begin(self, found: Generation, *, synced: bool) -> None:
        log.info(
            "The broker's contents are of generation %s, %s.",
            found.number,
            "complete" if synced else "to be published from the rows",
            extra={"action": "generation_found"},
        )
        first, self._number, self._run_id = not self._number, found.number, found.run_id
        self._build_at = None
        if not synced:
            # Workers reassert their jobs in the meantime, so that a running job is not handed out as well. When
            # this worker has just started, only other workers can have jobs to reassert.
            self._build_at = self._clock.monotonic() + (
                0.0 if first and self._has_no_others() else GRACE * self._renew_interval
            )
        self._building = False
        # Others built it, or it is older than we are: what happened to the server since then is unknown.
        self._everything = synced
        self._urgent = None
        self._missed, self._missed_before = {}, {}

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
        if self._building:
            for database in self._databases():
                self._broker.mark_synced(database)
            self._building = False
            log.info(
                "Every pending row is published in generation %s.", self._number, extra={"action": "generation_built"}
            )
        return False

    def _compare_in_rotation(self, cursor: Cursor) -> bool:
        """Compare the newest chunk, some others in turn, and look for overdue rows; True when a lot was missing."""
        began = self._clock.monotonic()
        overdue_first, self._overdue_first = self._overdue_first, False
        if overdue_first:
            self._publish_overdue(cursor)
        for number, chunk in enumerate(self._rotated(queries.pending_chunks(cursor))):
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
                self._publish_overdue(cursor)
        return False

    def _rotated(self, chunks: Sequence[int]) -> list[int]:
        """Return ``chunks`` (ascending) as the newest, then the others, going on behind the one compared last."""
        others = chunks[:-1]
        behind = [chunk for chunk in others if chunk > self._compared_last]
        return [*chunks[-1:], *behind, *(chunk for chunk in others if chunk <= self._compared_last)]

    def _compare(self, cursor: Cursor, chunk: int, deadline: float) -> bool:
        """Publish the chunk's pending rows whose bit is unset; False when the deadline came before the end."""
        # The bits first: read after the rows, the bit of a row that was settled in between would look unset.
        known = self._broker.published(self._store.database().tag, chunk)
        until, after = self._clock.now() + HORIZON, 0
        while missing := queries.unpublished(cursor, chunk, known, after, until, PUBLISH_LOT):
            self._publish(missing, force=False)
            after = missing[-1].id
            if len(missing) < PUBLISH_LOT:
                break
            if self._clock.monotonic() >= deadline:
                return False
        return True

    def _publish_overdue(self, cursor: Cursor) -> None:
        """Look where the next rows are that have been due for longer than a lease; publish the twice missed by force.

        One that is delayed for longer than any release delays it is made due and keeps its counts: a person said "now"
        while Redis was away. One whose action no worker knows waits in the broker alone: its row gets the reason, for
        people. Missed once is no proof: its holder may be stating it anew, or its settle may be under way.
        After a lease more neither can be, and the row, read anew, is still pending and due.
        """
        rows = queries.overdue(cursor, self._lease, self._overdue_after, OVERDUE_LOT)
        lost, late, parked = [], [], []
        #: By key: the first of those behind it.
        behind: dict[str | None, JobRow] = {}
        for start in range(0, len(rows), LOCATE_LOT):
            lot = rows[start : start + LOCATE_LOT]
            delayed = []
            for row, place in zip(lot, self._broker.locate(self._publications(lot)), strict=True):
                if place == Place.NOWHERE:
                    if self._missed_twice(row):
                        lost.append(row)
                elif place == Place.DELAYED:
                    delayed.append(row)
                elif place == Place.UNROUTED:
                    parked.append(row.id)
                elif place == Place.BEHIND_KEY:
                    behind.setdefault(row.key, row)
            late += [row for row in self._delayed_too_long(delayed) if self._missed_twice(row)]
        if behind:
            self._free_keys(cursor, behind.values())
        if parked:
            note_reason(cursor, parked, Reason(ReasonCode.UNROUTED))
        self._put_right(lost, late)
        self._overdue_after = rows[-1].id if len(rows) == OVERDUE_LOT else 0
        if not self._overdue_after:
            self._missed_before, self._missed = self._missed, {}

    def _put_right(self, lost: Sequence[JobRow], late: Sequence[JobRow]) -> None:
        if lost:
            log.warning(
                "%s jobs were known to the broker and nowhere in it; they are published by force.",
                len(lost),
                extra={"action": "lost_found", "jobs": [row.id for row in lost]},
            )
            self._publish(lost, force=True)
        if late:
            log.info(
                "%s jobs were delayed in the broker although their rows are due; they are due there now.",
                len(late),
                extra={"action": "late_found", "jobs": [row.id for row in late]},
            )
            self._broker.publish([job._replace(edited=True) for job in self._publications(late)])

    def _free_keys(self, cursor: Cursor, behind: Collection[JobRow]) -> None:
        """Discard heads whose rows are over, where nothing in PostgreSQL stands before those behind them.

        Such a head was replaced or cancelled, and the broker did not learn of it. It would wait as long as its delay,
        or whatever parks it, lasts. One that is handed off stays: its worker meets the row.
        """
        first = diagnosis.first_of_keys(cursor, [row.id for row in behind], HEADS_LOT)
        heads: dict[int, Publication] = {}
        for job in self._publications([row for row in behind if row.id in first]):
            for holder in self._broker.explain(job).holders:
                heads[Reference.unpack(holder).id] = job._replace(reference=holder)
        over = heads.keys() - diagnosis.pending_among(cursor, heads)
        freed = [row_id for row_id in sorted(over) if self._broker.discard(heads[row_id])]
        if freed:
            log.info(
                "%s jobs were over and still the first of their keys; they are forgotten.",
                len(freed),
                extra={"action": "heads_freed", "jobs": freed},
            )

    def _missed_twice(self, row: JobRow) -> bool:
        """Note that ``row`` is not where it belongs; return whether that was so a lease ago already."""
        now = self._clock.monotonic()
        first = self._missed_before.get(row.id, now)
        if now - first >= self._lease:
            return True
        self._missed[row.id] = first
        return False

    def _delayed_too_long(self, rows: Sequence[JobRow]) -> list[JobRow]:
        """Return those of ``rows``, which are due and delayed, whose delay no release explains."""
        if not rows:
            return []
        longest = int((self._clock.now().timestamp() + LONGEST_RELEASE + self._lease) * 1000)
        until = self._broker.delayed_until(self._publications(rows))
        return [row for row, its in zip(rows, until, strict=True) if its > longest]

    def _publish(self, rows: Sequence[JobRow], *, force: bool) -> None:
        crash_point("reconcile.before_publish")
        self._broker.publish(self._publications(rows), force=force)
        crash_point("reconcile.published")

    def _publications(self, rows: Sequence[JobRow]) -> list[Publication]:
        database = self._store.database()
        return [publication_of(row, database) for row in rows]
