"""Write a job's row only while it is as the caller saw it, without waiting for its lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidestream.job.states import State
from sidestream.store.cursor import Cursor, fetch_one

UTC_NOW = "(statement_timestamp() AT TIME ZONE 'UTC')"
"""Now, for columns in UTC, whatever the session's time zone is."""
# Returns the state of a row that was not written. Index: the primary key.
_STATE = "SELECT state, attempts FROM sidestream_job WHERE id = %(id)s::bigint"
_PENDING = frozenset({State.PENDING})


@dataclass(frozen=True, slots=True)
class CasResult:
    """The result of one write: applied, locked, superseded, ended or missing."""

    #: Whether the row was written.
    applied: bool
    #: The row's state afterwards; None when there is no such row.
    state: State | None
    #: Another session holds the row, so nothing was written: try again, or leave it to that session.
    locked: bool = False
    #: The row's attempts afterwards.
    attempts: int = 0

    @property
    def terminal(self) -> bool:
        """Whether the job has ended, by this write or before, or its row does not exist."""
        return self.state is not State.PENDING

    @property
    def failed(self) -> bool:
        """Whether the job is failed now."""
        return self.state is State.FAILED

    @property
    def missing(self) -> bool:
        """Whether there is no such row."""
        return not self.applied and self.state is None

    @property
    def superseded(self) -> bool:
        """Whether the row is pending but another session wrote it since the caller saw it."""
        return not self.applied and not self.locked and self.state is State.PENDING

    def __str__(self) -> str:
        """Return one word."""
        if self.locked:
            return "locked"
        if self.state is None:
            return "missing"
        return str(self.state.value)


def write(
    cur: Cursor,
    statement: str,
    parameters: Mapping[str, Any],
    *,
    expected: frozenset[State] = _PENDING,
    attempts_seen: int | None = None,
) -> CasResult:
    """Execute a statement made by :func:`compare_and_set`; when it wrote nothing, find out why.

    ``expected`` and ``attempts_seen`` repeat the statement's condition: a row that matches them is only locked.
    """
    cur.execute(statement, parameters)
    row = fetch_one(cur)
    if row is not None:
        return CasResult(applied=True, state=State(row.state), attempts=row.attempts)
    cur.execute(_STATE, {"id": parameters["id"]})
    row = fetch_one(cur)
    if row is None:
        return CasResult(applied=False, state=None)
    # The other session may have ended between the two statements; "locked" then only causes one more try.
    locked = row.state in expected and (attempts_seen is None or row.attempts == attempts_seen)
    return CasResult(applied=False, state=State(row.state), locked=locked, attempts=row.attempts)


def compare_and_set(assignments: str, condition: str, also: str = "") -> str:
    """Return an UPDATE of the row ``%(id)s`` that skips it if another session has locked it.

    PostgreSQL checks ``condition`` on the newest version of the row once it has the lock. ``also``: another part of the
    WITH, which writes something else for the id in ``mine``. The index is the primary key.
    """
    more = also and f", {also}"
    return f"""
        WITH mine AS MATERIALIZED (
            SELECT id FROM sidestream_job WHERE id = %(id)s::bigint AND {condition} FOR NO KEY UPDATE SKIP LOCKED){more}
        UPDATE sidestream_job j SET {assignments} FROM mine WHERE j.id = mine.id RETURNING j.state, j.attempts
        """  # noqa: S608  # made of this package's constants


def storable(text: str) -> str:
    """Return ``text`` as PostgreSQL can store it: errors quote whatever bytes made them."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
