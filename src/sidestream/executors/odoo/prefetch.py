"""Read facts about Odoo in the statement that acquires a job, which saves a round trip.

This module does not import odoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sidestream.executors.odoo.modules import CHANGING

MODULES_CHANGE = f"EXISTS (SELECT FROM ir_module_module WHERE {CHANGING})"
USER_ACTIVE = "(SELECT u.active FROM res_users u WHERE u.id = mine.user_id)"
CHECKED = 1000
"""Characters of the payload that are searched for record ids: those of about a hundred records."""
# The addon writes the ids first: {"v":1,"args":[[1,2,3],... This is a pattern because PostgreSQL's JSON refuses \u0000,
# which Python accepts. NULL when there are no ids, or too many. OFFSET keeps the planner from replacing the lookup of
# each record by a scan of a table that was small when it planned.
_GONE = """(SELECT coalesce(array_agg(e.id) FILTER (WHERE NOT EXISTS (
        SELECT FROM "{table}" r WHERE r.id = e.id OFFSET 0)), '{{}}')
    FROM unnest(string_to_array(substring(left(mine.payload, {checked}) FROM '^{{"v":1,"args":\\[\\[([0-9,]+)\\]'),
                                ',')::bigint[]) e (id) HAVING count(*) > 0)"""


class Prefetched(NamedTuple):
    """The facts that were read."""

    #: Modules are being installed, upgraded or removed.
    modules_change: bool
    #: Whether the user that the job runs as is active; None when there is no such user.
    user_active: bool | None
    #: Deleted records of the job; None when they were not checked.
    gone: list[int] | None
    #: Newest sequence number of the registry's signals.
    registry: int | None
    #: The same for each cache, in the order given to :func:`expressions`.
    caches: Sequence[int | None]


def expressions(caches: Sequence[str], table: str | None) -> tuple[str, ...]:
    """Return the SQL expressions for a job on records of ``table`` (None: do not check them)."""
    return (
        MODULES_CHANGE,
        USER_ACTIVE,
        "NULL::bigint[]" if table is None else _GONE.format(table=table.replace('"', '""'), checked=CHECKED),
        *(f"(SELECT max(id) FROM orm_signaling_{name})" for name in ("registry", *caches)),  # noqa: S608
    )


def read(values: Sequence[Any]) -> Prefetched:
    """Return the values of :func:`expressions` with their names."""
    modules_change, user_active, gone, registry, *caches = values
    return Prefetched(modules_change, user_active, gone, registry, caches)
