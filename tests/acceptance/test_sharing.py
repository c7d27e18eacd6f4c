"""Fairness, aging, order and limits under load and kills; ``make chaos`` runs a hundred times as many."""

from __future__ import annotations

import random

import pytest

from tests.chaos.sharing import LIMIT, run


@pytest.mark.timeout(300)
def test_company_b_is_served_the_lowest_priority_ages_and_no_limit_is_exceeded_while_children_are_killed() -> None:
    seed = random.randrange(1 << 31)
    found = run(waiting=1_000, jobs=600, seconds=5, seed=seed, aging=1.5, rank=0.5)
    print(f"seed {seed}: {found}")
    assert not found.broken, f"seed {seed}: {found.broken}"
    assert found.kills
    assert found.most_at_once == LIMIT, f"seed {seed}: the limit was never reached, so nothing was proven: {found}"
