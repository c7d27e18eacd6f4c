"""A concurrency limit holds in one worker while Redis goes away and returns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream.job.rules import Limit, Scope
from sidestream.store import rules
from tests.acceptance.rig import Rig, open_folder
from tests.support.servers import RedisServer

LIMIT = 2
JOBS = 6


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test may freeze."""
    with RedisServer() as server:
        yield server


def test_jobs_of_both_brokers_count_against_a_limit_when_redis_goes_away_and_returns(
    database: str, own_redis: RedisServer
) -> None:
    with open_folder() as folder:
        (folder / "gate").mkdir()
        (folder / "gate").chmod(0o777)
        rig = Rig(folder, database, own_redis.url)
        try:
            _outage_and_return(rig, folder / "gate", own_redis)
        finally:
            own_redis.mend()
            for job in range(1, 2 * JOBS):
                (folder / "gate" / f"go-{job}").touch()
            rig.close()


def _outage_and_return(rig: Rig, gate: Path, server: RedisServer) -> None:
    with rig.look.transaction(), rig.look.cursor() as cursor:
        rules.set_limit(cursor, Scope.ACTION, "enter", Limit(concurrency=LIMIT), by="test")

    def entered() -> set[int]:
        return {int(path.name.removeprefix("in-")) for path in gate.glob("in-*")}

    def running() -> set[int]:
        return {job for job in entered() if not (gate / f"go-{job}").exists()}

    def claims_go_on() -> None:
        """See two jobs without a limit done, one after the other: the worker has claimed since."""
        for _ in range(2):
            assert rig.ends(rig.enqueue("note")).state == "done"

    rig.start(SIDESTREAM_CHILDREN="8")
    jobs = [rig.enqueue("enter", str(gate)) for _ in range(JOBS)]
    rig.until(lambda: len(running()) == LIMIT)

    server.freeze()
    rig.until(lambda: "The broker is away" in rig.log.read_text())
    claims_go_on()
    assert len(running()) == LIMIT, f"while Redis is away, {sorted(running())} run"

    (gate / f"go-{min(running())}").touch()
    rig.until(lambda: len(entered()) == LIMIT + 1)  # PostgreSQL handed out the next
    claims_go_on()
    assert len(running()) == LIMIT, f"while Redis is away, {sorted(running())} run"

    server.thaw()
    rig.until(lambda: "The broker is back" in rig.log.read_text())
    claims_go_on()
    assert len(running()) == LIMIT, f"after Redis returned, {sorted(running())} run"

    for job in jobs:
        rig.until(lambda: len(running()) > 0)
        assert len(running()) <= LIMIT
        (gate / f"go-{job}").touch()
    assert [rig.ends(job).state for job in jobs] == ["done"] * JOBS
    assert sorted(rig.effects()) == sorted(["entered"] * JOBS + ["noted"] * 6), "a job ran twice"
