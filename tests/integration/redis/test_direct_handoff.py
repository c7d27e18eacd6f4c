"""A job of an idle shard goes directly to an idle worker, with the same result as through its pool."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from sidestream.broker.protocol import lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.job.names import tag
from sidestream.job.reference import NO_TAG8
from sidestream.job.rules import Limit, Pause, Rules, Scope
from tests.integration.redis.conftest import START, ready
from tests.integration.redis.test_functions import LANE, P, direct, row

OTHER = lane(NO_TAG8, "default")
ACT = tag("act", 4)


def everything(client: redis.Redis) -> dict[str, Any]:
    """Return what all keys hold, tokens left out."""
    found: dict[str, Any] = {}
    for key in client.scan_iter(f"{P}*"):
        name = key.decode().removeprefix(P)
        match client.type(key):
            case b"zset":
                found[name] = dict(client.zrange(key, 0, -1, withscores=True))
            case b"hash":
                found[name] = client.hgetall(key)
            case b"list":
                found[name] = [element[16:] for element in client.lrange(key, 0, -1)]
            case b"set":
                found[name] = client.smembers(key)
            case _:
                found[name] = client.get(key)
    found["leases"] = {reference: lease[16:] for reference, lease in found.get("leases", {}).items()}
    for field in (b"gen", b"token"):
        del found["meta"][field]
    return found


LANES = {"alone": [LANE], "first": [LANE, OTHER], "second": [OTHER, LANE]}
RULES = {
    "none": Rules(),
    "weights": Rules(queue_weights={"default": 3}),
    "paused queue": Rules(pauses=frozenset({Pause(queue="default")})),
    "paused action": Rules(pauses=frozenset({Pause(action="act")})),
    "limit": Rules(limits={(Scope.GLOBAL, ""): Limit(concurrency=0)}),
}
KNOWN = {"any action": None, "published": {ACT}, "unrouted": {tag("other", 4)}}
CASES = [
    *(("row", lanes, rules, "published") for lanes in LANES for rules in ("none", "weights")),
    *(("row", "second", rules, "published") for rules in ("paused queue", "paused action", "limit")),
    *(("direct", lanes, "weights", known) for lanes in ("alone", "second") for known in KNOWN),
]


@pytest.mark.parametrize(("kind", "lanes_name", "rules_name", "known_name"), CASES)
def test_both_paths_have_the_same_result(
    broker: RedisBroker, client: redis.Redis, kind: str, lanes_name: str, rules_name: str, known_name: str
) -> None:
    lanes, rules, known = LANES[lanes_name], RULES[rules_name], KNOWN[known_name]
    left = []
    for due in (0, START):  # one that names its moment goes through the pool
        client.flushall()
        ready(broker, rules)
        broker.announce("w1", lanes, "{}", 60_000, None if known is None else frozenset(known))
        for number in (1, 2):
            assert broker.claim("w1", lanes, free=2, wait_ms=40) == []
            assert broker.publish([(row if kind == "row" else direct)(number)._replace(due_ms=due)]) == 1
            left.append(everything(client))
            for delivery in broker.claim("w1", lanes, free=2):
                broker.settle([delivery])
        left.append(everything(client))
    assert left[:3] == left[3:]
    if known_name != "unrouted" and rules_name in ("none", "weights"):
        assert left[0]["handoff:w1"], "it is with the reader"


def wait(client: redis.Redis, reader: str, until: int, lane: str, children: int = 1) -> None:
    """Leave what a claim leaves that waits for jobs."""
    client.hset(f"{P}idle", reader, f"{children} {until}\n{lane}")
    client.zadd(f"{P}idle:{lane}", {reader: until})


def test_a_job_does_not_overtake_one_that_came_before(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([row(1)])
    wait(client, "w1", START + 40, LANE)
    broker.publish([row(2)])
    (handed,) = client.lrange(f"{P}handoff:w1", 0, -1)
    assert handed[16:].startswith(row(1).reference)


def test_a_worker_whose_wait_is_over_gets_nothing(broker: RedisBroker, client: redis.Redis) -> None:
    wait(client, "gone", START - 1, LANE)
    wait(client, "here", START + 40, LANE)
    broker.publish([row(1)])
    assert not client.exists(f"{P}handoff:gone")
    assert client.llen(f"{P}handoff:here") == 1
    assert client.hkeys(f"{P}idle") == []
    assert not client.exists(f"{P}idle:{LANE}")


def test_idle_workers_of_other_lanes_are_skipped(broker: RedisBroker, client: redis.Redis) -> None:
    wait(client, "a", START + 40, OTHER)
    wait(client, "b", START + 40, LANE, children=2)
    broker.publish([row(1)])
    assert client.llen(f"{P}handoff:b") == 1
    assert client.hgetall(f"{P}idle")[b"b"] == f"1 {START + 40}\n{LANE}".encode()
