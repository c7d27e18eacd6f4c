"""Run a small number of kills over jobs of Odoo; ``make chaos`` runs ten times as many."""

from __future__ import annotations

import random

import pytest

from tests.odoo.kills import Killing

KILLS, JOBS = 20, 200


@pytest.mark.timeout(400)
def test_random_kills_lose_double_and_reorder_nothing() -> None:
    seed = random.randrange(1 << 31)
    verdict = Killing(KILLS, JOBS, seed).run()
    print(f"seed {seed}: {verdict}")
    assert verdict.kept, f"seed {seed}: {verdict}"
    assert sum(verdict.kills.values()) == KILLS
    assert verdict.promised >= JOBS
    assert verdict.exposures > 0, "no kill met a running job: the test proved nothing"
