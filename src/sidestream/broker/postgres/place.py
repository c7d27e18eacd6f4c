"""Where a row's job waits, as one worker sees it without Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sidestream.broker.postgres.selection import Selector
from sidestream.broker.protocol import Explanation, Place
from sidestream.job.reference import action_of
from sidestream.job.rules import Pause
from sidestream.job.states import State
from sidestream.store.diagnosis import JobDiagnosis
from sidestream.store.schema import Database


def place_of(
    found: JobDiagnosis | None,
    reference: bytes,
    selector: Selector,
    known: Sequence[frozenset[bytes] | None],
    database: Database,
    put_off: float,
) -> Explanation:
    """Say where it waits: the first that applies of its time, a pause, its action, its key, a limit.

    ``known``: the actions of each worker of this process. ``put_off``: seconds for which it is left out here.
    """
    if found is None or found.state is not State.PENDING or found.job.reference(database) != reference:
        return Explanation(Place.NOWHERE)
    job = found.job
    if found.early:
        return Explanation(Place.DELAYED, until_ms=job.due_ms)
    if put_off:
        return Explanation(Place.DELAYED, until_ms=int((time.time() + put_off) * 1000))
    scope = paused_by(selector.rules.pauses, job.queue, job.action, job.group)
    if scope:
        return Explanation(Place.PAUSED, scope)
    action = action_of(reference)
    if known and all(one is not None and action not in one for one in known):
        return Explanation(Place.UNROUTED)
    if found.before is not None:
        return Explanation(Place.BEHIND_KEY, holders=(found.before.reference(database),))
    gate = selector.closed_gate(job, reference)
    if gate is not None:
        holders = tuple(selector.holders(gate)[:10])
        return Explanation(Place.LIMITED, gate.counted[0].value, holders, selector.opens_ms(gate))
    return Explanation(Place.READY)


def paused_by(pauses: frozenset[Pause], queue: str, action: str, group: str | None) -> str:
    """Return the scope of the pause that holds such a job back; "" when none does."""
    for pause, scope in (
        (Pause(queue=queue), "queue"),
        (Pause(action=action), "action"),
        (Pause(group=group) if group is not None else None, "group"),
        (Pause(action=action, group=group) if group is not None else None, "action of group"),
    ):
        if pause in pauses:
            return scope
    return ""
