"""Tell the status of jobs: what a pending job does or waits for, in one word."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from sidestream.admin.diagnosis import pause_of
from sidestream.broker.protocol import Place
from sidestream.errors import BrokerError, SettingsError
from sidestream.job.states import State, Status
from sidestream.relay.publications import publication_of
from sidestream.settings import Settings
from sidestream.store import job_row, schema
from sidestream.store.queries import Row
from sidestream.store.rules import Entry
from sidestream.wiring.client import build_broker, store_cursor

_OF_PLACE = {
    Place.BEHIND_KEY: Status.BLOCKED,
    Place.LIMITED: Status.LIMITED,
    Place.PAUSED: Status.PAUSED,
    Place.UNROUTED: Status.UNROUTED,
}


def statuses(
    settings: Settings, rows: Sequence[Row], running: Container[int], entries: Iterable[Entry]
) -> dict[int, State | Status]:
    """Return the status of each row by id; of an ended job that is its state.

    PostgreSQL tells which jobs run, retry, are scheduled or paused. Redis tells which of the others are blocked,
    limited or unrouted; while it does not answer they are shown as waiting.

    Args:
        settings: Where the servers are.
        rows: Jobs as read.
        running: Ids of those that a worker's session holds.
        entries: The rules of their database.
    """
    entries = list(entries)
    found: dict[int, State | Status] = {row.id: _of_row(row, running, entries) for row in rows}
    open_ids = [job for job, status in found.items() if status is Status.WAITING]
    if open_ids:
        found |= _of_broker(settings, open_ids)
    return found


def _of_row(row: Row, running: Container[int], entries: Sequence[Entry]) -> State | Status:
    if row.state is not State.PENDING:
        return row.state
    if row.id in running:
        return Status.RUNNING
    if not row.due:
        return Status.RETRYING if row.attempts > row.forgiven else Status.SCHEDULED
    return Status.WAITING if pause_of(row, entries) is None else Status.PAUSED


def _of_broker(settings: Settings, job_ids: Sequence[int]) -> dict[int, Status]:
    with store_cursor(settings) as cursor:
        database, rows = schema.identify(cursor, allow_copy=True), job_row.find_all(cursor, job_ids)
    found: dict[int, Status] = {}
    try:
        broker = build_broker(settings)
        try:
            if not broker.generation().number:
                return {}  # no worker has met this Redis yet
            for row in rows:
                found[row.id] = _OF_PLACE.get(broker.explain(publication_of(row, database)).place, Status.WAITING)
        finally:
            broker.close()
    except (BrokerError, SettingsError):
        return {}  # the caller asked for jobs, which PostgreSQL has; `why` says that Redis is away
    return found
