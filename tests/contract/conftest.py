"""Which broker a contract case runs on, and which cases a broker is excused from, by name and with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("sidestream.testing.broker_contract", "sidestream.testing.broker_contract_leases")

from sidestream.testing.servers import RedisServer, ServerFailed, find_redis7  # noqa: E402
from tests.contract.benches import MemoryBench, PostgresBench, RedisBench, started  # noqa: E402  # after the rewrite is registered

EXCUSED = {
    "memory": {
        "test_an_emptied_broker_says_that_it_moved": "its contents end with its process",
        "test_reasserting_what_runs": "its contents end with its process",
    },
}


@pytest.fixture(scope="session")
def valkey() -> Iterator[RedisServer]:
    yield from started("valkey")


@pytest.fixture(scope="session")
def redis7() -> Iterator[RedisServer]:
    try:
        find_redis7()
    except ServerFailed as error:
        pytest.skip(str(error))
    yield from started("redis7")


@pytest.fixture(params=["memory", "valkey", "redis7", "postgres"])
def empty_bench(request: pytest.FixtureRequest) -> Iterator[MemoryBench]:
    kind: str = request.param
    reason = EXCUSED.get(kind, {}).get(request.node.originalname)
    if reason:
        pytest.skip(f"The {kind} broker is excused: {reason}.")
    bench: MemoryBench
    if kind == "memory":
        bench = MemoryBench()
    elif kind == "postgres":
        bench = PostgresBench(request.getfixturevalue("database"))
    else:
        bench = RedisBench(request.getfixturevalue(kind))
    yield bench
    bench.close()


@pytest.fixture
def bench(empty_bench: MemoryBench) -> MemoryBench:
    empty_bench.broker.begin_generation()
    return empty_bench
