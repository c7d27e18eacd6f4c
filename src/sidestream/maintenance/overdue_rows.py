"""Put right what the broker lost or delays although its rows are due."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from sidestream.broker.protocol import Broker, Place, Publication
from sidestream.clock import Clock
from sidestream.job.reason import Reason, ReasonCode
from sidestream.job.reference import Reference
from sidestream.maintenance.store_connection import Cursor, StoreConnection
from sidestream.relay.publications import publication_of
from sidestream.store import diagnosis, queries
from sidestream.store.bulk import note_reason
from sidestream.store.job_row import JobRow

log = logging.getLogger(__name__)

LOCATE_LOT = 100
"""Most references in one locate."""
OVERDUE_LOT = 500
"""Most overdue rows that one step looks for."""
HEADS_LOT = 50
"""Most keys whose heads one step looks at."""
LONGEST_RELEASE = 30.0
"""Longest delay, in seconds, of a release whose row does not say when the job is due again."""


class OverdueRows:
    """Looks for rows that are due for longer than a lease, some in each step of the reconciler, in laps."""

    def __init__(
        self,
        broker: Broker,
        store: StoreConnection,
        clock: Clock,
        lease: float,
        publish: Callable[[list[JobRow]], None],
    ) -> None:
        """Look for nothing yet; ``publish`` publishes rows by force, whose bits are set."""
        self._broker = broker
        self._store = store
        self._clock = clock
        self._lease = lease
        self._publish = publish
        #: The row that was looked for last, 0 at the begin of a lap.
        self._after = 0
        #: When rows were first missed (monotonic), by id: of this lap, and of the one before.
        self._missed: dict[int, float] = {}
        self._missed_before: dict[int, float] = {}

    def forget(self) -> None:
        """Forget which rows were missed: the contents of the broker are new."""
        self._missed, self._missed_before = {}, {}

    def publish(self, cursor: Cursor) -> None:
        """Look where the next rows are; publish the twice missed by force.

        One that is delayed for longer than any release delays it is made due and keeps its counts: a person said "now"
        while Redis was away. One whose action no worker knows waits in the broker alone: its row gets the reason, for
        people. Missed once is no proof: its holder may be stating it anew, or its settle may be under way.
        After a lease more neither can be, and the row, read anew, is still pending and due.
        """
        rows = queries.overdue(cursor, self._lease, self._after, OVERDUE_LOT)
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
        self._after = rows[-1].id if len(rows) == OVERDUE_LOT else 0
        if not self._after:
            self._missed_before, self._missed = self._missed, {}

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

    def _put_right(self, lost: list[JobRow], late: Sequence[JobRow]) -> None:
        if lost:
            log.warning(
                "%s jobs were known to the broker and nowhere in it; they are published by force.",
                len(lost),
                extra={"action": "lost_found", "jobs": [row.id for row in lost]},
            )
            self._publish(lost)
        if late:
            log.info(
                "%s jobs were delayed in the broker although their rows are due; they are due there now.",
                len(late),
                extra={"action": "late_found", "jobs": [row.id for row in late]},
            )
            self._broker.publish([job._replace(edited=True) for job in self._publications(late)])

    def _publications(self, rows: Sequence[JobRow]) -> list[Publication]:
        database = self._store.database()
        return [publication_of(row, database) for row in rows]
