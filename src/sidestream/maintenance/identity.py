"""Check that the database is still the one that the worker was started for."""

from __future__ import annotations

from collections.abc import Callable

from sidestream.errors import SchemaMismatch
from sidestream.maintenance.store_connection import StoreConnection


class IdentityCheck:
    """Notice that a person adopted the database, which changes the identity under which its jobs are published."""

    name = "identity check"
    every = 2.0

    def __init__(self, store: StoreConnection, on_changed: Callable[[], None]) -> None:
        """``on_changed`` is called at every step from then on."""
        self._store = store
        self._on_changed = on_changed

    def step(self) -> bool:
        """Look once; see :class:`~sidestream.maintenance.task.MaintenanceTask`."""
        try:
            self._store.check()
        except SchemaMismatch:
            if not self._store.changed:
                raise
        if self._store.changed:
            self._on_changed()
        return False
