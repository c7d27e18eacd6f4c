"""What the model's jobs are, and the rules that govern them."""

from __future__ import annotations

from random import Random
from uuid import UUID

from sidestream.broker.protocol import Delivery, Publication, lane
from sidestream.job.names import tag
from sidestream.job.reference import Reference, direct_reference, row_reference
from sidestream.job.rules import Limit, Pause, Rules, Scope

DB = b"testbase"
QUEUES = ("one", "two")
LANES = [lane(DB, queue) for queue in QUEUES]
KEYS = (None, None, None, "a", "b")
GROUPS = (None, "A", "A", "B", "C")
ACTIONS = ("act", "act", "bill", "mail")
LIMIT_KEYS = (None, None, "carrier", "carrier:1", "carrier:2")
PRIORITIES = (5, 5, 5, 0, 9, 7)
WEIGHTS = (0.25, 0.5, 1, 2, 3, 4)
CONSUMERS = {
    "any": None,
    "new": frozenset(tag(name, 4) for name in ("act", "bill", "mail")),
    "old": frozenset({tag("act", 4)}),
}
"""Workers by the actions that they know: a newer and an older release, and one that takes any."""


def make(random: Random, number: int) -> Publication:
    """Return job ``number``; every fifth is a direct one."""
    key, group, limit = random.choice(KEYS), random.choice(GROUPS), random.choice(LIMIT_KEYS)
    action, priority, home = random.choice(ACTIONS), random.choice(PRIORITIES), random.choice(LANES)
    if number % 5 == 0:
        packed = direct_reference(UUID(int=number), action, key, DB, group, limit).pack()
        return Publication(packed, home, 0, b"bytes %d" % number, priority=priority)
    packed = row_reference(DB, number, action, key, group, limit).pack()
    return Publication(packed, home, priority=priority)


def shown(job: Delivery | Publication) -> str:
    """Return what a person can compare."""
    named = Reference.unpack(job.reference)
    number = f"direct {named.uuid.int}" if named.uuid else str(named.id)
    words = [number, f"p{job.priority}", job.lane[17:]]
    words += [f"{name}={part.hex()[:3]}" for name, part in (("key", named.key), ("group", named.group)) if any(part)]
    words += [f"limit={named.limit.hex()[-3:]}"] if named.limit else []
    action = next(name for name in ACTIONS if tag(name, 4) == named.action)
    return " ".join([*words, action])


def rules(random: Random, version: int) -> Rules:
    """Return rules with a bit of everything, or with nothing."""
    if random.random() < 0.2:
        return Rules(version, aging=random.choice((1.0, 600.0)))
    pauses = [Pause(queue="one"), Pause(action="bill"), Pause(group="A"), Pause(action="act", group="B")]
    names = [
        (Scope.GLOBAL, ""),
        (Scope.QUEUE, "one"),
        (Scope.ACTION, "act"),
        (Scope.ACTION, "mail"),
        (Scope.KEY, "carrier"),
    ]
    limits = {}
    for name in random.sample(names, random.choice((0, 1, 1, 2, 3))):
        most, rate = random.choice((0, 1, 1, 2, 3, None)), random.choice((None, None, 0, 0.5, 3, 50.0))
        if most is not None or rate is not None:
            limits[name] = Limit(most, rate, random.choice((1, 2, 5)))
    return Rules(
        version,
        aging=random.choice((0.0, 0.05, 1.0, 5.0)),
        pauses=frozenset(random.sample(pauses, random.choice((0, 0, 0, 1, 2)))),
        queue_weights={name: random.choice(WEIGHTS) for name in QUEUES if random.random() < 0.5},
        group_weights={name: random.choice(WEIGHTS) for name in ("A", "B") if random.random() < 0.5},
        limits=limits,
    )
