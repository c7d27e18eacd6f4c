"""Promise 6: commands match PostgreSQL within two seconds while everything changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.acceptance.conftest import Run, answer
from tests.acceptance.rig import Rig

WITHIN = 2.0
"""Seconds (promise 6)."""
ROUNDS = 12
LOOK = "SELECT id, state FROM sidestream_job"


class Truth:
    """What PostgreSQL said, and when: looks as often as it can."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._looks: list[tuple[float, dict[int, str]]] = []

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look from now on, until the block ends."""
        ended = threading.Event()

        def look() -> None:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not ended.is_set():
                    found = {int(row): str(state) for row, state in connection.execute(LOOK).fetchall()}
                    with self._lock:
                        self._looks.append((time.monotonic(), found))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(20)

    def between(self, began: float, ended: float) -> list[dict[int, str]]:
        """Return the looks from ``WITHIN`` before ``began`` until ``ended``, and the one after."""
        while True:
            with self._lock:
                if self._looks and self._looks[-1][0] > ended:
                    first = next(at for at, _ in self._looks if at > ended)
                    return [found for at, found in self._looks if began - WITHIN <= at <= first]


def test_commands_report_states_that_are_at_most_two_seconds_old(rig: Rig, run: Run) -> None:
    rig.start()
    truth, wrong, changes = Truth(rig.dsn), list[str](), 0

    def compare(command: str, job: int, said: str, looks: list[dict[int, str]]) -> None:
        if said not in {found[job] for found in looks if job in found}:
            wrong.append(f"{command} said that job {job} is {said!r}")

    with truth.looking():
        for number in range(ROUNDS):
            jobs = [rig.enqueue("note", f"{number}"), rig.enqueue("fail"), rig.enqueue("note", "later", delay=3600)]
            if number % 5 == 0:
                jobs.append(rig.enqueue("wait", 0.3))
            assert run("job", "cancel", str(jobs[2])).returncode == 0

            began = time.monotonic()
            listed = answer(run("jobs", "--limit", "1000", "--json"))["jobs"]
            looks = truth.between(began, time.monotonic())
            assert {job["id"] for job in listed} >= set(looks[0])
            for job in listed:
                compare("jobs", job["id"], job["state"], looks)
            changes += sum(len({found.get(job["id"]) for found in looks}) > 1 for job in listed)

            for one in jobs:
                began = time.monotonic()
                said = answer(run("job", "show", str(one), "--json"))["state"]
                compare("job", one, said, truth.between(began, time.monotonic()))

            began = time.monotonic()
            [queue] = answer(run("queue", "list", "--json"))["queues"]
            looks = truth.between(began, time.monotonic())
            for name, said in (
                ("pending", queue["due"] + queue["scheduled"] + queue["retrying"]),
                ("failed", queue["failed"]),
            ):
                counts = [list(found.values()).count(name) for found in looks]
                if not min(counts) <= said <= max(counts):
                    wrong.append(f"queues said {said} {name}, PostgreSQL {min(counts)} to {max(counts)}")

            failed = [one for one in jobs if rig.job(one).state == "failed"]
            if failed:
                assert run("job", "retry", str(failed[0])).returncode == 0
    assert changes > ROUNDS, "hardly anything changed while it was looked at: this showed nothing"
    assert wrong == []
