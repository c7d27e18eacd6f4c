"""SIGKILL of a child, a zygote or a supervisor while a job runs: promises 5 and 7, with real processes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sidestream.worker.timeout_monitor import SHOWN_AFTER
from tests.chaos import processes
from tests.chaos.programs import Launcher
from tests.chaos.world import LEASE, PATIENCE, World

KILLS = int(os.environ.get("CHAOS_KILLS", "30"))
"""Kills of children in all; ``CHAOS_KILLS=300`` gives the p99 of issue 2. Of fewer, the median is judged: their p99 is
the worst one, and that is the machine's."""
RANK = 0.99 if KILLS >= 300 else 0.5


@pytest.fixture(scope="module")
def world(launcher: Launcher) -> Iterator[World]:
    """Two workers of two children each on one host."""
    with World(seed="kills", launcher=launcher) as world:
        world.start_workers()
        for worker in world.workers:
            world.wait_for_children(worker)
        yield world


@pytest.fixture
def calm(world: World) -> World:
    """The world with every process in place, no pending job and no event left over."""
    world.start_workers()
    for worker in world.workers:
        world.wait_for_children(worker)
    world.wait_for("SELECT NOT EXISTS (SELECT FROM sidestream_job WHERE state = 'pending')")
    world.events.drain()
    return world


class _Silent(BaseHTTPRequestHandler):
    """Accepts a request and does not answer it until the server is closed."""

    def do_GET(self) -> None:
        self.server.closing.wait()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def silent_server() -> Iterator[str]:
    """The address of an HTTP server that never answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    server.closing = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.closing.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("inside", ["sql", "http", "subprocess"])
def test_the_job_of_a_killed_child_starts_again_within_a_second(calm: World, silent_server: str, inside: str) -> None:
    chance = random.Random(f"kills/{inside}")
    delays = []
    for number in range(KILLS // 3):
        token = f"{inside}-{number}"
        job_id = calm.enqueue(f"kill.{inside}", token, *([silent_server] if inside == "http" else []))
        _, _, pid, *_ = calm.events.next(PATIENCE, "start", token)
        program = [int(calm.events.next(PATIENCE, "program", token)[2])] if inside == "subprocess" else []
        below = processes.identities(program)
        time.sleep(chance.uniform(0, 0.05))  # anywhere inside the call, also at its very beginning
        killed = time.monotonic()
        processes.kill(int(pid))
        _, _, _, again, attempt = calm.events.next(PATIENCE, "start", token)
        delays.append(float(again) - killed)
        assert int(attempt) == 2
        assert not processes.wait_gone(below, 20.0), "the program that the killed job started is still there"
        calm.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", job_id)
        assert calm.query("SELECT count(*) FROM ledger WHERE token = %s", token) == [(1,)]
        assert calm.query("SELECT attempts, crashes FROM sidestream_job WHERE id = %s", job_id) == [(1, 1)]
    delays.sort()
    judged = delays[min(len(delays) - 1, int(len(delays) * RANK))]
    said = f"p{100 * RANK:g} {judged:.3f} s, most {delays[-1]:.3f} s"
    print(f"{len(delays)} kills inside {inside}: started again after {said}")
    assert judged < 1.0, said


def test_the_jobs_of_a_killed_supervisor_start_again_within_lease_and_5_seconds(calm: World) -> None:
    job_id = calm.enqueue("kill.sleep", "host", 3.0)
    _, _, pid, *_ = calm.events.next(PATIENCE, "start", "host")
    [owner] = [worker for worker in calm.workers if int(pid) in worker.tree()]
    family = owner.tree()
    below = processes.identities(family[1:])
    killed = time.monotonic()
    processes.kill(owner.pid)  # it is not started again here: the other one has to take over
    _, _, second, again, _ = calm.events.next(PATIENCE, "start", "host")
    assert float(again) - killed < LEASE + 5
    assert int(second) not in family
    assert not processes.wait_gone(below, 5.0), "what the killed supervisor had started is still there"
    calm.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", job_id)
    assert calm.query("SELECT count(*) FROM ledger WHERE token = 'host'") == [(1,)]
    assert calm.query("SELECT attempts, crashes FROM sidestream_job WHERE id = %s", job_id) == [(0, 0)]


def test_a_killed_zygote_is_replaced_and_its_jobs_are_not_charged(calm: World) -> None:
    job_id = calm.enqueue("kill.sleep", "zygote", 1.0)
    _, _, pid, *_ = calm.events.next(PATIENCE, "start", "zygote")
    zygote = processes.parent(int(pid))
    [owner] = [worker for worker in calm.workers if zygote in worker.tree()]
    supervisor = owner.pid
    processes.kill(zygote)
    calm.events.next(PATIENCE, "start", "zygote")
    calm.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", job_id)
    assert calm.query("SELECT attempts, crashes FROM sidestream_job WHERE id = %s", job_id) == [(0, 0)]
    assert calm.query("SELECT count(*) FROM ledger WHERE token = 'zygote'") == [(1,)]
    calm.wait_for_children(owner)
    assert owner.pid == supervisor
    assert calm.zygote(owner) != zygote


def test_a_job_that_kills_its_process_runs_three_times_and_is_dead(calm: World) -> None:
    others = [calm.enqueue("kill.sleep", f"bystander-{number}", 0.3) for number in range(6)]
    poison = calm.enqueue("kill.own", "poison")
    calm.wait_for("SELECT state = 'failed' FROM sidestream_job WHERE id = %s", poison)
    calm.wait_for("SELECT bool_and(state = 'done') FROM sidestream_job WHERE id = ANY(%s)", others)
    assert [words[1] for words in calm.events.drain() if words[0] == "start"].count("poison") == 3
    assert calm.query("SELECT crashes FROM sidestream_job WHERE id = %s", poison) == [(3,)]
    assert calm.query("SELECT sum(attempts), sum(crashes) FROM sidestream_job WHERE id = ANY(%s)", others) == [(0, 0)]
    assert calm.query("SELECT count(*) FROM ledger WHERE token = 'poison'") == [(0,)]


def test_a_child_that_dies_of_sigterm_charges_nobody_and_its_job_starts_again(calm: World) -> None:
    job_id = calm.enqueue("kill.sleep", "terminated", 1.0)
    for _ in range(4):  # once more than a job may crash
        _, _, pid, *_ = calm.events.next(PATIENCE, "start", "terminated")
        os.kill(int(pid), signal.SIGTERM)
    calm.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", job_id)
    assert calm.query("SELECT attempts, crashes FROM sidestream_job WHERE id = %s", job_id) == [(0, 0)]
    assert calm.query("SELECT count(*) FROM ledger WHERE token = 'terminated'") == [(1,)]


def test_sigterm_to_every_process_of_a_worker_charges_nobody(calm: World) -> None:
    """As systemd does with its default KillMode, pkill, and the stop of a container."""
    job_id = calm.enqueue("kill.sleep", "rolling", 10.0)  # longer than a worker takes to end
    for _ in range(3):
        _, _, pid, *_ = calm.events.next(PATIENCE, "start", "rolling")
        [owner] = [worker for worker in calm.workers if int(pid) in worker.tree()]
        for process in owner.tree():
            os.kill(process, signal.SIGTERM)
        calm.wait_until(lambda owner=owner: not owner.pid, "the worker that was told to stop has ended")  # type: ignore[misc]
        calm.start_workers()
    calm.wait_for("SELECT state = 'done' FROM sidestream_job WHERE id = %s", job_id)
    assert calm.query("SELECT attempts, crashes FROM sidestream_job WHERE id = %s", job_id) == [(0, 0)]
    assert calm.query("SELECT count(*) FROM ledger WHERE token = 'rolling'") == [(1,)]


@pytest.mark.parametrize("after", [0.0, 2 * SHOWN_AFTER])
def test_a_job_that_kills_its_host_runs_at_most_three_times_and_is_charged_alone(calm: World, after: float) -> None:
    neighbour, plague = f"neighbour-{after}-", f"plague-{after}"
    others = [calm.enqueue("kill.sleep", f"{neighbour}{number}", 0.3) for number in range(6)]
    poison = calm.enqueue("kill.host", plague, after)
    calm.wait_for(
        "SELECT state = 'failed' FROM sidestream_job WHERE id = %s", poison, meanwhile=calm.start_workers, patience=120
    )
    calm.start_workers()
    calm.wait_for("SELECT bool_and(state = 'done') FROM sidestream_job WHERE id = ANY(%s)", others, patience=120)
    assert [words[1] for words in calm.events.drain() if words[0] == "start"].count(plague) <= 3
    assert calm.query("SELECT sum(attempts), sum(crashes) FROM sidestream_job WHERE id = ANY(%s)", others) == [(0, 0)]
    assert calm.query("SELECT count(*) FROM ledger WHERE starts_with(token, %s)", neighbour) == [(6,)]
