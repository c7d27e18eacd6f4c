"""Provide one Odoo for most of these tests: a server, a worker, the addon and its probes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.odoo.browser import Session
from tests.support.odoo import DATABASE, OdooWorld, odoo_command
from tests.support.server_process import ServerFailed

HERE = Path(__file__).parent
CHAOS = HERE / "addons"
LONGEST_FIRST = ("screens", "modules", "executor", "addon", "child_session", "killed_child", "kills", "searches")
"""The longest files, which start first because three processes share the files (`make test`)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort this folder's files in that order."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    ours = [item for item in items if HERE in item.path.parents]
    items[:] = [item for item in items if HERE not in item.path.parents] + sorted(ours, key=rank)


@pytest.fixture(scope="session", autouse=True)
def _odoo() -> None:
    try:
        odoo_command()
    except ServerFailed as error:
        pytest.skip(str(error))


class Shop:
    """A world with a logged-in user and a worker."""

    def __init__(self, world: OdooWorld) -> None:
        self.world = world
        self.server = world.serve()
        self.user = Session(self.server.url, DATABASE, "admin", "admin")
        self.worker = world.work()

    def run(self, method: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Enqueue an action of a probe, wait for its end, and return the result."""
        probe, job = self.user.call("chaos.probe", "start", [], method, *args, **options)
        return self.end(probe, job)

    def end(self, probe: int, job: int, patience: float = 60.0) -> dict[str, Any]:
        """Wait until the job has ended."""
        deadline = time.monotonic() + patience
        while True:
            found: dict[str, Any] = self.user.call("chaos.probe", "look", [], probe, job)
            if found["state"] != "pending":
                return found
            assert time.monotonic() < deadline, f"{found}; the worker's log: {self.world.worker_log()[-3000:]}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """An Odoo with ``base`` and ``web``, the addon, the probes; a threaded server; a worker with two children."""
    world = OdooWorld(
        ("sidestream", "sidestream_chaos"),
        base=("base", "web"),
        demo_data=False,
        addon_paths=[CHAOS],
        settings={"lease": 3, "renew_interval": 1, "recovery_period": 1},
    )
    with world:
        yield Shop(world)
