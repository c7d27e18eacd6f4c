"""What a compare-and-set write answers, and the one way in which all of them are made (design D4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidestream.job.states import State
from sidestream.store.cursor import Cursor

UTC_NOW = "(statement_timestamp() AT TIME ZONE 'UTC')"
"""Now, for columns in UTC, whatever the session's time zone is (C23)."""
OPEN = frozenset({State.PENDING})


@dataclass(frozen=True, slots=True)
class CasResult:
    """The answer to one write: ours, locked, moved or already over."""

    #: Whether we wrote the row.
    applied: bool
    #: The row's state afterwards; None when there is no such row.
    state: State | None
    #: Another session holds the row and nothing was written: try again, or leave it to that session.
    locked: bool = False
    #: The row's attempts afterwards.
    attempts: int = 0

    @property
    def terminal(self) -> bool:
        """Whether the job is over now, by this write, before it, or because its row is gone."""
        return self.state is not State.PENDING

    @property
    def failed(self) -> bool:
        """Whether the job is dead now."""
        return self.state is State.FAILED

    @property
    def missing(self) -> bool:
        """Whether there is no such row."""
        return not self.applied and self.state is None

    @property
    def superseded(self) -> bool:
        """Whether the row is open but not as the caller saw it: somebody else wrote it meanwhile."""
        return not self.applied and not self.locked and self.state is State.PENDING

    def __str__(self) -> str:
        """Say it in one word."""
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
    expected: frozenset[State] = OPEN,
    attempts_seen: int | None = None,
) -> CasResult:
    """Execute a statement made by :func:`compare_and_set`; when it wrote nothing, look why.

    ``expected`` and ``attempts_seen`` repeat what the statement's condition asks for: a row that fits is merely locked.
    """
    cur.execute(statement, parameters)
    row = cur.fetchone()
    if row is not None:
        return CasResult(applied=True, state=State(row[0]), attempts=row[1])
    cur.execute("SELECT state, attempts FROM sidestream_job WHERE id = %(id)s::bigint", {"id": parameters["id"]})
    row = cur.fetchone()
    if row is None:
        return CasResult(applied=False, state=None)
    state, attempts = State(row[0]), row[1]
    # Between the two statements the other session may have let go; "locked" then only means one more try.
    locked = state in expected and (attempts_seen is None or attempts == attempts_seen)
    return CasResult(applied=False, state=state, locked=locked, attempts=attempts)


def compare_and_set(assignments: str, condition: str, also: str = "") -> str:
    """Return an UPDATE of the row ``%(id)s`` that never waits: a row that another session has locked is skipped.

    ``condition`` is checked again on the newest version of the row once its lock is ours. ``also``: what is written
    with it, as one more part of the WITH, for the id in ``mine``.
    """
    more = also and f", {also}"
    return f"""
        WITH mine AS MATERIALIZED (
            SELECT id FROM sidestream_job WHERE id = %(id)s::bigint AND {condition} FOR NO KEY UPDATE SKIP LOCKED){more}
        UPDATE sidestream_job j SET {assignments} FROM mine WHERE j.id = mine.id RETURNING j.state, j.attempts
        """  # noqa: S608  # made of this room's own constants


def storable(text: str) -> str:
    """Return ``text`` as PostgreSQL can store it: errors quote whatever bytes made them."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
