"""Each function alone: what it finds, what it leaves behind in every key."""

from __future__ import annotations

from importlib.resources import files
from typing import Any
from uuid import UUID

import msgpack
import pytest
import redis

from sidestream.broker.protocol import Delivery, Publication, lane
from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.functions import SHARED, functions, library
from sidestream.errors import StaleGeneration
from sidestream.job.outcome import Release
from sidestream.job.reference import direct_reference, row_reference
from tests.integration.redis.conftest import DB, START, Clock, ready

LANE = lane(DB, "default")
P = "sidestream:{s0}:"
KNOWN = f"{P}published:{DB.hex()}:0"
FLOW = b"5" + bytes(8)
READY = f"flow:r1:{FLOW.decode()}"
"""The flow of the tests' jobs: the first lane, the default priority, no group."""
DELAYED = "delayed:1:5"


def row(number: int, key: str | None = None, due: int = 0, *, attempted: bool = False) -> Publication:
    return Publication(row_reference(DB, number, "act", key).pack(), LANE, due, None, attempted)


def direct(number: int, key: str | None = None) -> Publication:
    return Publication(direct_reference(UUID(int=number), "act", key, DB).pack(), LANE, 0, b"signed")


def contents(client: redis.Redis) -> dict[str, Any]:
    """Return everything but meta, lanes, rules and rings, by key name without the prefix."""
    readers = {
        b"zset": lambda key: dict(client.zrange(key, 0, -1, withscores=True)),
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"string": client.get,
    }
    names = sorted(client.scan_iter(f"{P}*"))
    found = {name.decode().removeprefix(P): readers[client.type(name)](name) for name in names}
    hidden = ("meta", "lanes", "rules")
    return {
        name: value
        for name, value in found.items()
        if name not in hidden and not name.startswith(("schedule:", "lanes:"))
    }


def bits(client: redis.Redis) -> int:
    return client.bitcount(KNOWN)


def claimed(broker: RedisBroker, free: int = 10) -> list[Delivery]:
    return broker.claim("w1", [LANE], free=free)


def test_every_function_states_its_contract() -> None:
    folder = files("sidestream.broker.redis") / "lua"
    assert len(functions()) >= 17
    for name in functions():
        source = (folder / f"{name}.lua").read_text()
        for word in ("-- KEYS[1] prefix", "-- ARGV ", "-- Returns {code", "-- Flags "):
            assert word in source, (name, word)
    assert {entry.name for entry in (folder / "shared").iterdir()} == {f"{name}.lua" for name in SHARED}


def test_the_library_is_named_after_its_source() -> None:
    source, prefix = library()
    assert source.startswith(f"#!lua name={prefix.rstrip('_')}\n")
    assert all(f"function_name = '{prefix}{name}'" in source for name in functions())


def test_publish_row(broker: RedisBroker, client: redis.Redis) -> None:
    assert broker.publish([row(5), row(6, due=START + 9000), row(7, "k"), row(8, "k")]) == 4
    found = contents(client)
    assert found[READY] == {row(5).reference: START, row(7, "k").reference: START}
    assert found[DELAYED] == {row(6).reference: START + 9000}
    keyed_entry = f"{START} 0 5 {LANE}".encode()
    assert list(found["heads"].values()) == [row(7, "k").reference + keyed_entry]
    (line,) = (value for name, value in found.items() if name.startswith("key:"))
    assert line == {row(8, "k").reference + keyed_entry: 8}
    assert bits(client) == 4
    assert client.hgetall(f"{P}lanes") == {LANE.encode(): b"1"}
    assert client.zrange(f"{P}schedule:r1", 0, -1, withscores=True) == [(FLOW, 5 * 2.0**40)]


def test_publish_direct(broker: RedisBroker, client: redis.Redis) -> None:
    assert broker.publish([direct(1), direct(1)]) == 1
    assert contents(client) == {
        READY: {direct(1).reference: START},
        "direct": {UUID(int=1).bytes: b"signed"},
    }


def test_claim(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([row(5), direct(1)])
    both = claimed(broker)
    found = contents(client)
    assert set(found) == {f"published:{DB.hex()}:0", "direct", "leases", f"leased:{LANE}"}
    assert found[f"leased:{LANE}"] == {row(5).reference: START, direct(1).reference: START}
    token = both[0].lease.entry[:16]
    assert found["leases"][row(5).reference] == token + f" 1 {START} 5 {LANE} w1".encode()


def test_claim_announces_free_children_while_it_waits(broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    assert broker.claim("w1", [LANE], free=3, wait_ms=40) == []
    waiting = {b"w1": START + 40}
    assert contents(client) == {"idle": {b"w1": f"3 {START + 40}\n{LANE}".encode()}, f"idle:{LANE}": waiting}
    broker.publish([row(1), row(2)])
    found = contents(client)
    assert found["idle"] == {b"w1": f"1 {START + 40}\n{LANE}".encode()}
    assert len(found["handoff:w1"]) == 2
    assert 0 < client.pttl(f"{P}handoff:w1") <= 600_000
    clock.ms += 41
    broker.publish([row(3)])
    assert READY in contents(client), "the announcement ran out"
    assert len(claimed(broker, free=2)) == 2
    assert set(contents(client)) == {READY, f"published:{DB.hex()}:0", "leases", f"leased:{LANE}"}


def test_claim_gives_back_what_it_has_no_child_for(broker: RedisBroker, client: redis.Redis) -> None:
    broker.claim("w1", [LANE], free=3, wait_ms=40)
    broker.publish([row(1, "k"), row(2), row(3)])
    (only,) = claimed(broker, free=1)
    assert only.reference == row(1, "k").reference
    assert set(contents(client)[READY]) == {row(2).reference, row(3).reference}


def test_renew(broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    broker.publish([row(1), row(2)])
    first, second = claimed(broker)
    clock.ms += 500
    assert broker.renew("w1", [first.lease]) == []
    assert contents(client)[f"leased:{LANE}"] == {first.reference: START + 500, second.reference: START}


def test_settle_leaves_nothing(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([row(1), row(2, "k"), direct(3), direct(4, "k")])
    held = claimed(broker)
    broker.release(held[0], Release())
    held[0:1] = claimed(broker)
    assert broker.settle(held) == []
    assert set(contents(client)) == {f"published:{DB.hex()}:0"}
    assert bits(client) == 0


def test_release(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([row(1)])
    (one,) = claimed(broker)
    assert broker.release(one, Release(delay_ms=700)) == 1
    found = contents(client)
    assert set(found) == {f"published:{DB.hex()}:0", DELAYED, "attempts"}
    assert found[DELAYED] == {one.reference: START + 700}
    assert found["attempts"] == {one.reference: f"0 0 1 {START}".encode()}


def test_fail(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([direct(1)])
    (one,) = claimed(broker)
    assert broker.fail(one, "no such printer")
    found = contents(client)
    assert set(found) == {"failed"}
    kept = msgpack.unpackb(found["failed"][UUID(int=1).bytes], raw=True)
    assert (kept[b"payload"], kept[b"error"], kept[b"at"]) == (b"signed", b"no such printer", START)


def test_reclaim_forgets_dead_workers(broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    broker.announce("old", [LANE], "{}", 1000)
    broker.claim("old", [LANE], free=1, wait_ms=10)
    broker.publish([row(1)])
    assert contents(client)["handoff:old"]
    clock.ms += 500
    broker.announce("new", [LANE], "{}", 1000)
    clock.ms += 600
    broker.reclaim("new", [LANE], lease_ms=15_000, grace_ms=3000)
    assert set(contents(client)["workers"]) == {b"new"}
    assert "handoff:old" not in contents(client), "nobody reads it any more; the lease of what is in it runs out"


def test_reclaim_takes_a_hand_off_whose_reader_died(broker: RedisBroker, client: redis.Redis, clock: Clock) -> None:
    broker.claim("failed", [LANE], free=1, wait_ms=10)
    broker.publish([direct(1)])
    assert contents(client)["handoff:failed"]
    for _ in range(4):
        clock.ms += 5000
        broker.claim("alive", [LANE], free=1)
    ((one, loser),) = broker.reclaim("alive", [LANE], lease_ms=15_000, grace_ms=3000).deliveries
    assert (one.payload, loser) == (b"signed", "failed")
    assert broker.claim("failed", [LANE], free=1) == [], "the leases of the dead worker are no longer valid"


def test_reassert(broker: RedisBroker, client: redis.Redis, redis_server: Any) -> None:
    broker.publish([row(1, "k"), direct(2)])
    held = claimed(broker)
    redis_server.flushall()
    ready(broker)
    again = broker.reassert("w1", held)
    found = contents(client)
    assert set(found) == {f"published:{DB.hex()}:0", "direct", "leases", f"leased:{LANE}", "heads"}
    assert [one.reference for one in again] == [one.reference for one in held]
    assert {one.lease.entry for one in again}.isdisjoint(one.lease.entry for one in held)


def test_locate_repairs_a_key_whose_head_is_nowhere(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([row(1, "k"), row(2, "k"), row(3, "k")])
    client.delete(P + READY, f"{P}schedule:r1")
    assert claimed(broker) == []
    assert [place.value for place in broker.locate([row(3, "k"), row(2, "k")])] == ["behind key", "ready"]
    assert [one.reference for one in claimed(broker)] == [row(2, "k").reference]


def test_discard(broker: RedisBroker, client: redis.Redis) -> None:
    broker.publish([row(1), row(2, due=START + 9000), row(3, "k"), row(4, "k")])
    for job in (row(1), row(2), row(4, "k"), row(3, "k")):
        assert broker.discard(job)
    assert set(contents(client)) == {f"published:{DB.hex()}:0"}
    assert bits(client) == 0


def test_begin_is_won_by_the_first(broker: RedisBroker, redis_server: Any) -> None:
    other = RedisBroker(redis_server.url, timeout=10)
    assert other.begin_generation() == broker.generation()
    other.close()


def test_generation_writes_nothing(redis_server: Any, client: redis.Redis) -> None:
    fresh = RedisBroker(redis_server.url, timeout=10)
    assert fresh.generation().number == 0
    assert client.dbsize() == 0
    with pytest.raises(StaleGeneration, match="call generation"):
        fresh.mark_synced(DB)
    fresh.close()


def test_synced_and_published(broker: RedisBroker, client: redis.Redis) -> None:
    broker.mark_synced(DB)
    assert DB.hex() in broker.generation([DB]).synced
    broker.publish([row(9)])
    assert broker.published(DB, 0) == client.get(KNOWN) == b"\x00\x40"
    assert broker.published(DB, 1) == b""


def test_announce_and_withdraw(broker: RedisBroker, client: redis.Redis) -> None:
    broker.announce("w1", [LANE, "other"], '{"a": 1}', 2000)
    assert contents(client) == {"workers": {b"w1": START + 2000}, "info": {b"w1": f'{LANE} other\n{{"a": 1}}'.encode()}}
    broker.withdraw("w1")
    assert contents(client) == {}


def test_a_server_that_forgot_the_functions(broker: RedisBroker, client: redis.Redis) -> None:
    client.function_flush()
    assert broker.publish([row(1)]) == 1
    client.function_flush()
    assert len(claimed(broker)) == 1
