"""Every named crash point, twice: stop there, SIGKILL, restart, and nothing is lost, doubled, ghostly or out of order.

``make chaos`` does the same fifty times for each target; here each point meets two targets, drawn by its name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.points import POINTS, plan
from tests.chaos.programs import Launcher
from tests.chaos.world import World

SEED = "make test"


@pytest.fixture(scope="module")
def world(launcher: Launcher) -> Iterator[World]:
    """One world for all points that this process runs; each point starts its own workers in it."""
    with World(seed="points", settings={"SIDESTREAM_CHILD_MAX_JOBS": "20"}, launcher=launcher) as world:
        yield world


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_there_breaks_no_promise(world: World, point: str) -> None:
    kills = random.Random(f"{SEED}/{point}").sample(plan(point).targets, 2)
    try:
        result = Campaign(world, point, kills, SEED).run()
    finally:
        world.stop()
    assert not result.failures, "\n".join(result.failures)
    assert sum(result.kills.values()) == 2
