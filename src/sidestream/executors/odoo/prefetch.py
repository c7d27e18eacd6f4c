"""What the statement that opens a job reads of Odoo along the way, so that it costs no round trip of its own.

Nothing here imports odoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sidestream.executors.odoo.modules import CHANGING

MODULES_CHANGE = f"EXISTS (SELECT FROM ir_module_module WHERE {CHANGING})"
USER_ACTIVE = "(SELECT u.active FROM res_users u WHERE u.id = mine.user_id)"
CHECKED = 1000
"""How much of the arguments is looked through for record ids: those of about a hundred records."""
# The ids stand first in what the addon writes: {"v":1,"args":[[1,2,3],... A pattern, and not PostgreSQL's JSON, which
# refuses texts with \u0000 that Python takes. NULL when there are none, or too many. OFFSET keeps the planner from
# turning the look at each record into a scan of a table that was small when it planned.
_GONE = """(SELECT coalesce(array_agg(e.id) FILTER (WHERE NOT EXISTS (
        SELECT FROM "{table}" r WHERE r.id = e.id OFFSET 0)), '{{}}')
    FROM unnest(string_to_array(substring(left(mine.payload, {checked}) FROM '^{{"v":1,"args":\\[\\[([0-9,]+)\\]'),
                                ',')::bigint[]) e (id) HAVING count(*) > 0)"""


class Prefetched(NamedTuple):
    """What was read."""

    #: Modules are being installed, upgraded or removed.
    modules_change: bool
    #: Whether the user that the job runs as is active; None when there is no such user.
    user_active: bool | None
    #: Records of the job that were deleted; None when that was not looked at.
    gone: list[int] | None
    #: Newest number of the registry's signals.
    registry: int | None
    #: The same of each cache, in the order in which they were given.
    caches: Sequence[int | None]


def expressions(caches: Sequence[str], table: str | None) -> tuple[str, ...]:
    """Return what to read for a job about records of ``table`` (None: they are not looked at)."""
    return (
        MODULES_CHANGE,
        USER_ACTIVE,
        "NULL::bigint[]" if table is None else _GONE.format(table=table.replace('"', '""'), checked=CHECKED),
        *(f"(SELECT max(id) FROM orm_signaling_{name})" for name in ("registry", *caches)),  # noqa: S608
    )


def read(values: Sequence[Any]) -> Prefetched:
    """Return what the values of :func:`expressions` say."""
    modules_change, user_active, gone, registry, *caches = values
    return Prefetched(modules_change, user_active, gone, registry, caches)
