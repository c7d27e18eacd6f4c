"""Pack the rules of a database for ``lua/shared/rules.lua``, with tags instead of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from sidestream.job.names import tag
from sidestream.job.reference import group_tag
from sidestream.job.rules import Limit, Rules, Scope


def pack_rules(rules: Rules) -> bytes:
    """Return the rules without their version as MessagePack; equal rules give equal bytes."""
    paused = sorted(rules.pauses, key=lambda pause: (pause.queue or "", pause.action or "", pause.group or ""))
    fields: dict[str, Any] = {
        "aging": round(rules.aging * 1000),
        "paused_queues": [pause.queue for pause in paused if pause.queue is not None],
        "paused_actions": [tag(p.action, 4) for p in paused if p.action is not None and p.group is None],
        "paused_groups": [group_tag(p.group) for p in paused if p.group is not None and p.action is None],
        "paused_pairs": [
            tag(p.action, 4) + group_tag(p.group) for p in paused if p.action is not None and p.group is not None
        ],
        "queue_weights": dict(sorted(rules.queue_weights.items())),
        "group_weights": {group_tag(name): weight for name, weight in sorted(rules.group_weights.items())},
        "limits": _limits(rules.limits),
    }
    packed: bytes = msgpack.packb(fields, use_bin_type=False)  # cmsgpack in Lua has only one string type
    return packed


def _limits(limits: Mapping[tuple[Scope, str], Limit]) -> dict[str, Any]:
    found: dict[str, Any] = {"queues": {}, "actions": {}, "keys": {}}
    for (scope, name), limit in sorted(limits.items()):
        if limit.concurrency is None and limit.rate is None:
            continue  # unlimited: not checked for every job
        numbers = [
            -1 if limit.concurrency is None else limit.concurrency,
            -1 if limit.rate is None else limit.rate,
            limit.burst,
        ]
        match scope:
            case Scope.GLOBAL:
                found["everything"] = numbers
            case Scope.QUEUE:
                found["queues"][name] = numbers
            case Scope.ACTION:
                found["actions"][tag(name, 4)] = numbers
            case Scope.KEY:
                found["keys"][tag(name, 4)] = numbers
    return found
