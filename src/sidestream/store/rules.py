"""Read and change the rules of a database, with author, time and note.

A change and its version commit together. The maintenance sees the version and sends the rules to the broker. Two people
who change rules at the same time wait for each other; no job waits for them.
"""

# ruff: noqa: S608  (every statement is made of this package's constants; values are bound)

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sidestream.errors import InvalidName, SettingsError
from sidestream.job.names import check_action, check_group, check_queue, check_rule
from sidestream.job.rules import Limit, Pause, Rules, Scope, check_weight
from sidestream.store.compare_and_set import UTC_NOW, storable
from sidestream.store.cursor import Cursor, aware, fetch_all, fetch_value

_COLUMNS = "kind, scope, name, group_name, concurrency, rate, burst, weight, seconds, note, changed_by, changed_at"
# Returns the version and the rules in one snapshot, whatever the isolation; one row with NULLs when there is no rule.
_READ = f"""
    SELECT meta.rules_version, {_COLUMNS}
    FROM sidestream_meta meta LEFT JOIN sidestream_rule ON true ORDER BY kind, scope, name, group_name"""
# Returns the version of the rules.
_VERSION = "SELECT rules_version FROM sidestream_meta"
# Raises the version. Waits for the row of sidestream_meta, so that versions have the order of commits. The version is
# a time in milliseconds, so that a database restored to an earlier day still has a newer one than the broker kept. A
# change and its version are one statement, so that no session sees the version before the change, even with
# autocommit.
_GROW = """
    WITH grown AS (
        UPDATE sidestream_meta
        SET rules_version = greatest(rules_version + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
        RETURNING rules_version)"""
# Writes a rule and returns the new version. Index: the unique one.
_PUT = f"""
    {_GROW}
    INSERT INTO sidestream_rule ({_COLUMNS})
    SELECT %(kind)s::text, %(scope)s::text, %(name)s::text, %(group)s::text, %(concurrency)s::integer,
           %(rate)s::float8, %(burst)s::integer, %(weight)s::float8, %(seconds)s::float8, %(note)s::text,
           %(by)s::text, {UTC_NOW}
    FROM grown
    ON CONFLICT (kind, scope, name, group_name) DO UPDATE SET
        concurrency = excluded.concurrency, rate = excluded.rate, burst = excluded.burst, weight = excluded.weight,
        seconds = excluded.seconds, note = excluded.note, changed_by = excluded.changed_by,
        changed_at = excluded.changed_at
    RETURNING (SELECT rules_version FROM grown)"""
# Deletes a rule and returns its id.
_REMOVE = f"""
    {_GROW}
    DELETE FROM sidestream_rule USING grown
    WHERE kind = %(kind)s::text AND scope = %(scope)s::text AND name = %(name)s::text AND group_name = %(group)s::text
    RETURNING id"""
_NOTHING = dict.fromkeys(("concurrency", "rate", "burst", "weight", "seconds", "note", "by"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule, and who set it, when and why."""

    #: "limit", "weight", "pause" or "aging".
    kind: str
    #: Of a limit: see :class:`~sidestream.job.rules.Scope`. Of a weight: "queue" or "group". Of a pause: "queue",
    #: "action", "group", or "action" with a group. Of the aging: "global".
    scope: str
    #: Of the queue, the action or the limit rule; "" where there is none.
    name: str
    #: "" where there is none.
    group: str
    #: Exactly one of limit, weight, pause, seconds and problem is set.
    limit: Limit | None
    weight: float | None
    pause: Pause | None
    #: Of the aging, in seconds.
    seconds: float | None
    #: Why the rule has no effect: its stored numbers are out of range.
    problem: str | None
    note: str | None
    changed_by: str | None
    #: Aware, UTC.
    changed_at: datetime


def version(cur: Cursor) -> int:
    """Return the version of the rules; 0 when no rule was ever set."""
    cur.execute(_VERSION)
    return int(fetch_value(cur))


def read(cur: Cursor) -> Rules:
    """Return the rules as one value."""
    found, rules = _read(cur)
    limits = {(Scope(one.scope), one.name): one.limit for one in rules if one.limit is not None}
    weights = {(one.scope, one.name or one.group): one.weight for one in rules if one.weight is not None}
    aging = [one.seconds for one in rules if one.seconds is not None]
    return Rules(
        version=found,
        pauses=frozenset(one.pause for one in rules if one.pause is not None),
        queue_weights={name: weight for (scope, name), weight in weights.items() if scope == "queue"},
        group_weights={name: weight for (scope, name), weight in weights.items() if scope == "group"},
        limits=limits,
        skipped=tuple(one.problem for one in rules if one.problem is not None),
        **({"aging": aging[0]} if aging else {}),
    )


def entries(cur: Cursor) -> list[Entry]:
    """Return every rule, and who set it, when and why."""
    return _read(cur)[1]


def set_limit(
    cur: Cursor, scope: Scope | str, name: str, limit: Limit, *, by: str | None = None, note: str | None = None
) -> int:
    """Limit everything, a queue, an action or each value of a limit key; return the version.

    Raises :class:`~sidestream.errors.SettingsError` and :class:`~sidestream.errors.InvalidName`.
    """
    place = _limited(scope, name)
    if limit.concurrency is None and limit.rate is None:
        raise SettingsError("A limit needs a concurrency, a rate or both; to lift one, remove it.")
    values = {"concurrency": limit.concurrency, "rate": limit.rate, "burst": limit.burst}
    return _put(cur, {**place, **values}, by, note)


def remove_limit(cur: Cursor, scope: Scope | str, name: str) -> bool:
    """Remove a limit; False when there was none."""
    return _remove(cur, _limited(scope, name))


def set_weight(
    cur: Cursor, kind: str, name: str, weight: float, *, by: str | None = None, note: str | None = None
) -> int:
    """Set the weight of the queue or the group (``kind``) ``name``; return the version."""
    return _put(cur, {**_weighted(kind, name), "weight": check_weight(kind, name, float(weight))}, by, note)


def remove_weight(cur: Cursor, kind: str, name: str) -> bool:
    """Reset the weight of a queue or group to 1; False when none was set."""
    return _remove(cur, _weighted(kind, name))


def pause(cur: Cursor, what: Pause, *, by: str | None = None, note: str | None = None) -> int:
    """Stop starting jobs of ``what``; running jobs continue. Return the version."""
    return _put(cur, _paused(what), by, note)


def resume(cur: Cursor, what: Pause) -> bool:
    """Start jobs of ``what`` again; False when it was not paused."""
    return _remove(cur, _paused(what))


def set_aging(cur: Cursor, seconds: float, *, by: str | None = None, note: str | None = None) -> int:
    """Set the priority aging time in seconds; return the version."""
    Rules(aging=seconds)  # says what is wrong with it
    return _put(cur, {"kind": "aging", "scope": "global", "name": "", "group": "", "seconds": seconds}, by, note)


def remove_aging(cur: Cursor) -> bool:
    """Reset the priority aging time to its default; False when none was set."""
    return _remove(cur, {"kind": "aging", "scope": "global", "name": "", "group": ""})


def _limited(scope: Scope | str, name: str) -> dict[str, Any]:
    try:
        known = Scope(scope)
    except ValueError:
        raise SettingsError(f"The scope {scope!r:.40} of a limit is not known; expected {', '.join(Scope)}.") from None
    match known:
        case Scope.GLOBAL if name:
            raise SettingsError(f"A global limit has no name, but {name!r:.80} was given; leave it out.")
        case Scope.QUEUE:
            check_queue(name)
        case Scope.ACTION:
            check_action(name)
        case Scope.KEY:
            check_rule(name)
    return {"kind": "limit", "scope": known.value, "name": name, "group": ""}


def _weighted(kind: str, name: str) -> dict[str, Any]:
    if kind == "queue":
        return {"kind": "weight", "scope": kind, "name": check_queue(name), "group": ""}
    if kind == "group":
        return {"kind": "weight", "scope": kind, "name": "", "group": check_group(name)}
    raise SettingsError(f"A weight belongs to a queue or a group, not to {kind!r:.40}.")


def _paused(what: Pause) -> dict[str, Any]:
    scope = "queue" if what.queue is not None else "action" if what.action is not None else "group"
    return {"kind": "pause", "scope": scope, "name": what.queue or what.action or "", "group": what.group or ""}


def _put(cur: Cursor, values: dict[str, Any], by: str | None, note: str | None) -> int:
    told = {"by": None if by is None else storable(by), "note": None if note is None else storable(note)}
    cur.execute(_PUT, {**_NOTHING, **values, **told})
    return int(fetch_value(cur))


def _remove(cur: Cursor, place: dict[str, Any]) -> bool:
    # Repeat when it found nothing: it may have waited for a session whose new rule its snapshot did not show.
    for _ in range(2):
        cur.execute(_REMOVE, place)
        if cur.fetchone() is not None:
            return True
    return False


def _read(cur: Cursor) -> tuple[int, list[Entry]]:
    cur.execute(_READ)
    rows = fetch_all(cur)
    return int(rows[0].rules_version), [_entry(row) for row in rows if row.kind is not None]


def _entry(row: Any) -> Entry:
    limit = weight = paused = seconds = problem = None
    try:
        if row.kind == "limit":
            limit = Limit(row.concurrency, row.rate, row.burst or 1)
        elif row.kind == "weight":
            weight = check_weight(row.scope, row.name or row.group_name, row.weight)
        elif row.kind == "aging":
            seconds = Rules(aging=row.seconds).aging
        elif row.scope == "queue":
            paused = Pause(row.name)
        else:
            paused = Pause(None, row.name or None, row.group_name or None)
    except (SettingsError, InvalidName) as error:
        # One bad rule does not keep the others from taking effect.
        problem = f"The {row.kind} of {row.scope}:{row.name or row.group_name} has no effect: {error}"
    place = (row.kind, row.scope, row.name, row.group_name)
    told = (row.note, row.changed_by, aware(row.changed_at))
    return Entry(*place, limit, weight, paused, seconds, problem, *told)
