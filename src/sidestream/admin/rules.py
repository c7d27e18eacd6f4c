"""Read and change the rules of a database as a person requests: pauses, limits, weights and aging.

Rules are rows in PostgreSQL. The maintenance of every worker sees a change within half a second.
"""

from __future__ import annotations

from collections.abc import Collection

from sidestream.job.rules import DEFAULT_AGING, DEFAULT_WEIGHT, Limit, Pause
from sidestream.settings import Settings
from sidestream.store import rules
from sidestream.store.rules import Entry
from sidestream.wiring.client import store_cursor


def entries(settings: Settings, kinds: Collection[str]) -> list[Entry]:
    """Return the rules of these kinds, with who set them, when and why."""
    with store_cursor(settings) as cursor:
        return [entry for entry in rules.entries(cursor) if entry.kind in kinds]


def pause(settings: Settings, what: Pause, *, by: str, note: str | None) -> None:
    """Stop starting jobs of ``what``; running jobs continue."""
    with store_cursor(settings) as cursor:
        rules.pause(cursor, what, by=by, note=note)


def resume(settings: Settings, what: Pause) -> bool:
    """Start jobs of ``what`` again; False when it was not paused."""
    with store_cursor(settings) as cursor:
        return rules.resume(cursor, what)


def set_limit(settings: Settings, scope: str, name: str, limit: Limit, *, by: str, note: str | None) -> None:
    """Set or replace a limit; see :func:`sidestream.store.rules.set_limit`."""
    with store_cursor(settings) as cursor:
        rules.set_limit(cursor, scope, name, limit, by=by, note=note)


def remove_limit(settings: Settings, scope: str, name: str) -> bool:
    """Remove a limit; False when there was none."""
    with store_cursor(settings) as cursor:
        return rules.remove_limit(cursor, scope, name)


def weigh(settings: Settings, kind: str, name: str, weight: float | None, *, by: str, note: str | None) -> float:
    """Set the weight of a queue or group unless ``weight`` is None; return its weight. The default removes the rule."""
    with store_cursor(settings) as cursor:
        if weight is None:
            found = rules.read(cursor)
            weights = found.queue_weights if kind == "queue" else found.group_weights
            return weights.get(name, DEFAULT_WEIGHT)
        if weight == DEFAULT_WEIGHT:
            rules.remove_weight(cursor, kind, name)
        else:
            rules.set_weight(cursor, kind, name, weight, by=by, note=note)
        return weight


def aging(settings: Settings) -> float:
    """Return the priority aging time in seconds."""
    with store_cursor(settings) as cursor:
        return rules.read(cursor).aging


def set_aging(settings: Settings, seconds: float | None, *, by: str, note: str | None = None) -> float:
    """Set the priority aging time (None: the default), and return it."""
    with store_cursor(settings) as cursor:
        if seconds is None:
            rules.remove_aging(cursor)
            return DEFAULT_AGING
        rules.set_aging(cursor, seconds, by=by, note=note)
        return seconds
