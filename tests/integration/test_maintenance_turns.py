"""One worker at a time does the maintenance of a database, on a real Valkey."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from sidestream.broker.redis.broker import RedisBroker
from sidestream.errors import StoreUnavailable
from sidestream.maintenance.task import MaintenanceThread
from sidestream.maintenance.turns import SLACK, InTurn, Turn
from tests.integration.reconciler.conftest import wait_until
from tests.support.servers import RedisServer

EVERY = 0.05


class Counted:
    """A task that notes who stepped, and fails while it is told to."""

    name = "tidier"
    every = EVERY

    def __init__(self, worker: str, steps: list[str]) -> None:
        self.worker, self.steps, self.fails = worker, steps, False

    def step(self) -> bool:
        self.steps.append(self.worker)
        if self.fails:
            raise StoreUnavailable("PostgreSQL does not answer.")
        return False


class Hosts:
    """As many workers as a test asks for, each with that task and a connection of its own."""

    def __init__(self, redis: RedisServer, stack: ExitStack) -> None:
        self.redis, self.stack = redis, stack
        self.steps: list[str] = []
        self.maintenance: dict[str, Counted] = {}
        self.threads: dict[str, MaintenanceThread] = {}

    def start(self, name: str) -> None:
        broker = RedisBroker(self.redis.url, timeout=10)
        self.stack.callback(broker.close)
        broker.begin_generation()
        task = self.maintenance[name] = Counted(name, self.steps)
        turn = Turn(broker, task.name, name, EVERY)
        thread = self.threads[name] = MaintenanceThread([InTurn(task, turn)])
        thread.start()
        self.stack.callback(thread.stop)

    def since(self, at: int) -> set[str]:
        return set(self.steps[at:])


@pytest.fixture
def hosts(redis_server: RedisServer) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(redis_server, stack)


def stepped(hosts: Hosts, count: int) -> Callable[[], bool]:
    goal = len(hosts.steps) + count
    return lambda: len(hosts.steps) >= goal


def test_ten_workers_together_do_the_maintenance_of_one(hosts: Hosts) -> None:
    began = time.monotonic()
    for number in range(10):
        hosts.start(f"w{number}")
    wait_until(stepped(hosts, 20), "twenty steps")
    took = time.monotonic() - began
    assert len(hosts.since(0)) == 1, "whoever was first goes on"
    assert len(hosts.steps) <= took / (0.9 * EVERY) + 2


def test_another_worker_continues_when_one_stops_responding(hosts: Hosts) -> None:
    hosts.start("first")
    wait_until(stepped(hosts, 3), "the first steps")
    hosts.start("second")
    assert hosts.threads["first"].stop()
    silent, at = time.monotonic(), len(hosts.steps)
    wait_until(lambda: len(hosts.steps) > at, "steps of another worker")
    assert hosts.since(at) == {"second"}
    assert time.monotonic() - silent < 2 * EVERY + SLACK + 1


def test_a_worker_without_postgresql_does_not_block_maintenance_of_others(hosts: Hosts) -> None:
    hosts.start("first")
    wait_until(stepped(hosts, 3), "the first steps")
    hosts.maintenance["first"].fails = True
    hosts.start("second")
    wait_until(lambda: "second" in hosts.steps, "a step of the other worker")
    at = len(hosts.steps)
    wait_until(stepped(hosts, 10), "more steps")
    assert hosts.since(at) == {"second"}


def test_without_redis_every_worker_does_the_maintenance(hosts: Hosts) -> None:
    hosts.start("first")
    hosts.start("second")
    wait_until(stepped(hosts, 3), "the first steps")
    hosts.redis.stop()
    wait_until(lambda: hosts.since(0) == {"first", "second"}, "steps of both")
