"""The brokers do not differ. 200,000 steps: ``python -m tests.model.run --steps 200000 --seed 1``."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.benches import started
from tests.model.pair import STEPS, Pair
from tests.model.run import episode
from tests.support.servers import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from started("valkey")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_answers(server: RedisServer, seed: int) -> None:
    episode(server, f"suite {seed}", 1000)


@pytest.mark.timeout(300)
@settings(
    max_examples=12,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    random=st.randoms(use_true_random=False), names=st.lists(st.sampled_from(sorted(STEPS)), min_size=20, max_size=60)
)
def test_any_mixture_of_calls(server: RedisServer, random: Random, names: list[str]) -> None:
    pair = Pair(server, random, thorough=True)
    try:
        for name in names:
            pair.step(name)
    finally:
        pair.close()
