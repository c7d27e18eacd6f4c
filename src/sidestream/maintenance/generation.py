"""Follow the generation of the broker's contents: which one it is, and what has to be compared because of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidestream.broker.protocol import Broker, Generation
from sidestream.job.reference import NO_TAG8
from sidestream.maintenance.store_connection import StoreConnection


@dataclass(frozen=True, slots=True)
class Contents:
    """What the reconciler knows of the broker's contents."""

    #: 0 until the first look.
    number: int = 0
    run_id: str = ""
    #: The generation is not synced: once this monotonic time has come, everything is compared.
    build_at: float | None = None
    #: When everything is compared, the generation is to be marked as synced.
    building: bool = False
    #: Compare every chunk from the next step on.
    everything: bool = False


def follow(known: Contents, found: Generation, *, synced: bool, build_at: float) -> Contents:
    """Return what is known after a look at the generation; ``build_at``: when to compare one that is not synced yet.

    ``synced``: whether all databases that are served here are synced in it.
    """
    if found.number != known.number:
        # If synced: others built it, or it is older than we are: what happened to the server since then is unknown.
        return Contents(found.number, found.run_id, None if synced else build_at, everything=synced)
    if found.run_id != known.run_id:
        # Restarted or failed over: a second or so of what it held may be gone, bits and references alike.
        known = replace(known, run_id=found.run_id, everything=True)
    # Synced by the first worker: our comparison goes on, but no job waits for it.
    return replace(known, build_at=None, building=False) if synced else known


def current_generation(broker: Broker, databases: Sequence[bytes] = ()) -> Generation:
    """Return the generation as :meth:`~sidestream.broker.protocol.Broker.generation`; begin one if there is none."""
    found = broker.generation(databases)
    return found if found.number else broker.begin_generation(databases)


def served_databases(store: StoreConnection | None, *, direct: bool) -> list[bytes]:
    """Return the tags of the database behind ``store`` and, with ``direct``, of the jobs without one."""
    own = [] if store is None else [store.database().tag]
    return [*own, NO_TAG8] if direct else own
