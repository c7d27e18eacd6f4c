"""Tell the status of jobs in one word: as PostgreSQL knows it, and more exactly where Redis answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from sidestream.broker.protocol import Place
from sidestream.errors import BrokerError, SettingsError
from sidestream.job.states import State, Status
from sidestream.relay.publications import publication_of
from sidestream.settings import Settings
from sidestream.store import job_row, schema
from sidestream.store.cursor import Cursor
from sidestream.store.queries import Row
from sidestream.store.statuses import pending_statuses
from sidestream.wiring.client import build_broker

_OF_PLACE = {
    Place.BEHIND_KEY: Status.BLOCKED,
    Place.LIMITED: Status.LIMITED,
    Place.PAUSED: Status.PAUSED,
    Place.UNROUTED: Status.UNROUTED,
}
_BROKER_KNOWS = (Status.WAITING, Status.LIMITED, Status.UNROUTED)
"""Statuses that PostgreSQL only estimates: the broker counts limits, and knows the actions of the live workers."""


def statuses(settings: Settings, cur: Cursor, rows: Sequence[Row]) -> dict[int, State | Status]:
    """Return the status of each row by id; of an ended job that is its state.

    :func:`~sidestream.store.statuses.pending_statuses` decides as far as PostgreSQL knows; its answer remains while
    Redis does not answer.

    Args:
        settings: Where Redis is.
        cur: Of the transaction that read the rows.
        rows: Jobs as read.
    """
    known = pending_statuses(cur, [row.id for row in rows if row.state is State.PENDING])
    found: dict[int, State | Status] = {
        row.id: row.state if row.state is not State.PENDING else known.get(row.id, Status.WAITING) for row in rows
    }
    estimated = [job_id for job_id, status in found.items() if status in _BROKER_KNOWS]
    if not estimated:
        return found
    database = schema.identify(cur, allow_copy=True)
    publications = {row.id: publication_of(row, database) for row in job_row.find_all(cur, estimated)}
    try:
        with closing(build_broker(settings)) as broker:
            if broker.generation().number:  # else no worker has met this Redis yet
                for job_id, publication in publications.items():
                    found[job_id] = _OF_PLACE.get(broker.explain(publication).place, Status.WAITING)
    except (BrokerError, SettingsError):
        pass  # the caller asked for jobs, which PostgreSQL has; `why` says that Redis is away
    return found
