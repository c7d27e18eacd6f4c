"""Who lives and who died, found out from PostgreSQL alone."""

from __future__ import annotations

import time

import pytest

from sidestream.errors import BrokerUnavailable
from sidestream.maintenance.worker_deaths import WorkerDeaths
from sidestream.store import deaths
from tests.integration.reclaimer.conftest import DEAD, Bench, charges


def _until_silent(bench: Bench, worker: str) -> None:
    deadline = time.monotonic() + 10
    with bench.connection.cursor() as cursor:
        while deaths.without_lock(cursor) != [worker]:  # its backend takes a moment to end
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_lone_start_of_a_worker_that_is_neither_announced_nor_locked_is_charged(bench: Bench) -> None:
    [row_id] = bench.insert()
    looking = WorkerDeaths(bench.store, dead_here=dict, announced=bench.announced.__contains__)
    with bench.session(DEAD) as session, session.cursor() as cursor:
        deaths.enter(cursor, DEAD)
        bench.start_alone(row_id)
        looking.step()
        assert (charges(bench.row(row_id)), looking.found) == ((0, 0, 0), False), "it holds its lock"
    _until_silent(bench, DEAD)
    bench.announced.add(DEAD)
    looking.step()
    assert (charges(bench.row(row_id)), looking.found) == ((0, 0, 0), False), "it is announced"
    bench.announced.clear()
    for _ in range(2):
        looking.step()
        assert (charges(bench.row(row_id)), looking.found) == ((1, 1, -1), True)


@pytest.mark.parametrize(("failed", "max_attempts"), [(0, 1), (0, 2), (4, 5)])
def test_a_job_that_kills_its_host_gets_no_more_attempts_than_its_action_allows(
    bench: Bench, failed: int, max_attempts: int
) -> None:
    [row_id] = bench.insert()
    bench.connection.execute("UPDATE sidestream_job SET attempts = %s", [failed])
    looking = WorkerDeaths(bench.store, dead_here=dict, announced=bench.announced.__contains__)
    deaths_seen = 0
    while bench.row(row_id).state == "pending":
        deaths_seen += 1
        with bench.session(f"host-{deaths_seen}") as session, session.cursor() as cursor:
            deaths.enter(cursor, f"host-{deaths_seen}")
            bench.start_alone(row_id, f"host-{deaths_seen}", max_attempts)
        _until_silent(bench, f"host-{deaths_seen}")
        looking.step()
    row = bench.row(row_id)
    assert (row.state, row.attempts, deaths_seen) == ("failed", max_attempts, max_attempts - failed)


def test_what_a_dead_worker_started_among_others_is_suspected_while_redis_is_away(bench: Bench) -> None:
    def unknown(worker: str) -> bool:
        raise BrokerUnavailable("away")

    started, idle = bench.insert(2)
    with bench.session(DEAD) as session, session.cursor() as cursor:
        deaths.enter(cursor, DEAD)
        bench.start(started)
    _until_silent(bench, DEAD)
    WorkerDeaths(bench.store, dead_here=dict, announced=unknown).step()
    assert [charges(bench.row(row_id)) for row_id in (started, idle)] == [(0, 0, 1), (0, 0, 0)]


def test_what_the_slots_of_a_dead_worker_of_this_host_name_is_charged_though_it_is_announced(bench: Bench) -> None:
    ran, idle = bench.insert(2)
    [direct] = bench.enqueue_direct()
    bench.announced.add(DEAD)
    running = frozenset({bench.reference(ran), direct, b"not ours"})
    looking = WorkerDeaths(bench.store, dead_here=lambda: {DEAD: running}, announced=bench.announced.__contains__)
    looking.step()
    looking.step()
    assert [charges(bench.row(row_id)) for row_id in (ran, idle)] == [(0, 0, 1), (0, 0, 0)]


def test_a_job_whose_row_is_locked_is_charged_later(bench: Bench) -> None:
    [row_id] = bench.insert()
    running = {DEAD: frozenset({bench.reference(row_id)})}
    looking = WorkerDeaths(bench.store, dead_here=lambda: running, announced=bench.announced.__contains__)
    with bench.session("form") as form, form.transaction():
        form.execute("SELECT FROM sidestream_job WHERE id = %s FOR UPDATE", (row_id,))
        looking.step()
    assert bench.row(row_id).suspects == 0
    looking.step()
    assert bench.row(row_id).suspects == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_stops_leaves_nothing(bench: Bench, times: int) -> None:
    with bench.session(DEAD) as session, session.cursor() as cursor:
        for _ in range(times):
            deaths.enter(cursor, DEAD)
        deaths.leave(cursor, DEAD)
    with bench.connection.cursor() as cursor:
        assert deaths.without_lock(cursor) == []
