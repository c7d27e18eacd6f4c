"""Kill processes at random while a real Odoo runs jobs, and count from outside what was lost, doubled or reordered.

``python -m tests.odoo.kills --kills 200 --jobs 2000 --seed N`` exits with code 1 when a promise is broken. The jobs
write effects to tables without unique constraints, call a courier that keeps a ledger, share keys, fail, commit in
parts and enqueue others. A kill ends a child, the zygote, the supervisor, or the whole worker. Redis is emptied once.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from tests.odoo.browser import Session
from tests.support.odoo import DATABASE, ROOT, OdooWorld
from tests.support.server_process import free_port

HERE = Path(__file__).parent
TARGETS = ("child",) * 7 + ("zygote", "supervisor", "all")
SETTINGS = {"lease": 2, "renew_interval": 0.5, "recovery_period": 0.5, "children": 2, "nice": 0}
PATIENCE = 120.0
LOTS = 10
"""Transactions in which the jobs are enqueued."""


@dataclass
class Verdict:
    """The counts."""

    promised: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    #: Jobs that failed because chance killed them as often as a poison job.
    failed: int = 0
    #: Deliveries that a worker held when it, or a part of it, was killed.
    exposures: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    shipments: int = 0

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.ghosts or self.reordered)

    def __str__(self) -> str:
        counts = {name: len(getattr(self, name)) for name in ("lost", "doubled", "ghosts", "reordered")}
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        kills = ", ".join(f"{count} x {target}" for target, count in sorted(self.kills.items()))
        return (
            f"{sum(self.kills.values())} kills ({kills}), {self.exposures} deliveries exposed, {self.promised} jobs "
            f"promised, {said}, failed by chance {self.failed}; {self.shipments} shipments in {self.calls} calls"
        )


class Killing:
    """One world and the kills in it."""

    def __init__(self, kills: int, jobs: int, seed: int) -> None:
        self._kills = kills
        self._jobs = jobs
        self._seed = seed
        self._chance = random.Random(seed)
        self._world = OdooWorld(
            ("sidestream", "sidestream_chaos"),
            base=("base", "web"),
            demo_data=False,
            addon_paths=[HERE / "addons"],
            settings=SETTINGS,
        )
        self._verdict = Verdict()

    def run(self) -> Verdict:
        """Run the jobs, kill, and return the counts."""
        with self._world as world:
            ledger = world.folder / "courier.jsonl"
            port = free_port()
            program = [sys.executable, str(ROOT / "scripts" / "courier.py"), str(ledger), str(port), "0.02", "0.1"]
            courier = subprocess.Popen(program)
            try:
                server = world.serve()
                browser = Session(server.url, DATABASE, "admin", "admin")
                self._worker = world.work()
                self._strike_while_producing(browser, f"http://127.0.0.1:{port}")
                self._come_to_rest()
                return self._count(ledger)
            finally:
                courier.kill()
                courier.wait()

    def _strike_while_producing(self, browser: Session, courier: str) -> None:
        lot = max(1, self._jobs // LOTS)
        after = {self._kills * number // LOTS for number in range(LOTS)}
        flush_at = self._kills // 2
        struck = 0
        produced = 0
        while struck < self._kills:
            if struck in after:
                after.discard(struck)
                browser.call("chaos.subject", "produce", [], lot, f"{self._seed}-{produced}", courier)
                produced += lot
                browser.fails("chaos.subject", "roll_back", [], f"{self._seed}-{produced}")
            if struck == flush_at:
                flush_at = -1
                redis.Redis.from_url(self._world.redis_url()).flushall()
            time.sleep(self._chance.uniform(0.0, 0.15))  # a random moment
            if self._strike():
                struck += 1
            elif not self._pending_jobs():
                browser.call("chaos.subject", "produce", [], lot, f"{self._seed}-{produced}", courier)
                produced += lot

    def _strike(self) -> bool:
        """Kill a process that holds deliveries; return whether there was one."""
        if self._worker.poll() is not None:
            self._worker = self._world.work()
        leases = self._leases()
        target = self._chance.choice(TARGETS)
        victims = self._victims(target)
        if not leases or not victims:
            time.sleep(0.02)
            return False
        for process in victims:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it died with its parent
        if target in ("supervisor", "all"):
            self._worker.wait()
            self._worker = self._world.work()
        self._verdict.exposures += leases
        self._verdict.kills[target] += 1
        return True

    def _victims(self, target: str) -> list[psutil.Process]:
        try:
            supervisor = psutil.Process(self._worker.pid)
            zygotes = [p for p in supervisor.children() if "run_zygote" in " ".join(p.cmdline())]
            children = [child for zygote in zygotes for child in zygote.children()]
        except psutil.NoSuchProcess:
            return []
        if target == "child":
            return [self._chance.choice(children)] if children else []
        if target == "zygote":
            return zygotes
        if target == "supervisor":
            return [supervisor] if children else []
        return [supervisor, *zygotes, *children] if children else []

    def _leases(self) -> int:
        client = redis.Redis.from_url(self._world.redis_url())
        try:
            return sum(client.hlen(name) for name in client.scan_iter("*leases"))
        except redis.exceptions.RedisError:
            return 0
        finally:
            client.close()

    def _pending_jobs(self) -> int:
        with self._world.connect() as connection:
            return _number(connection, "SELECT count(*) FROM sidestream_job WHERE state = 'pending'")

    def _come_to_rest(self) -> None:
        if self._worker.poll() is not None:
            self._worker = self._world.work()
        deadline = time.monotonic() + PATIENCE
        while self._pending_jobs() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _count(self, ledger: Path) -> Verdict:
        verdict = self._verdict
        with self._world.connect() as connection:
            promised = dict(connection.execute("SELECT token, job FROM chaos_promise").fetchall())
            effects = connection.execute("SELECT token, key, job, seen FROM chaos_effect ORDER BY id").fetchall()
            failed = {job for (job,) in connection.execute("SELECT id FROM sidestream_job WHERE state = 'failed'")}
        counts = Counter(token for token, *_ in effects)
        verdict.promised = len(promised)
        verdict.failed = len(failed)
        verdict.lost = [token for token, job in promised.items() if not counts[token] and job not in failed]
        verdict.doubled = [token for token, count in counts.items() if count > 1]
        verdict.ghosts = [token for token in counts if token not in promised]
        verdict.reordered = _reordered(effects)
        lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
        verdict.calls = sum(line["result"] == "called" for line in lines)
        accepted = Counter(line["order"] for line in lines if line["result"] == "accepted")
        verdict.shipments = sum(accepted.values())
        verdict.doubled += [f"shipment of {token}" for token, count in accepted.items() if count > 1]
        return verdict


def _reordered(effects: list[tuple[Any, ...]]) -> list[str]:
    """Return the keyed effects that did not see the effect of the previous job of their key."""
    newest: dict[str, int] = {}
    wrong = []
    for token, key, job, seen in effects:
        if key:
            before = newest.get(key, 0)
            if job < before or seen != before:
                wrong.append(token)
            newest[key] = max(before, job)
    return wrong


def _number(connection: psycopg.Connection[Any], statement: str) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row is not None else 0


def main() -> int:
    """Run with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.odoo.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    options = parser.parse_args()
    print(f"odoo chaos: {options.kills} kills over {options.jobs} ORM jobs, seed {options.seed}", flush=True)
    began = time.monotonic()
    verdict = Killing(options.kills, options.jobs, options.seed).run()
    print(f"odoo chaos: {verdict}; {time.monotonic() - began:.0f} s", flush=True)
    for name in ("lost", "doubled", "ghosts", "reordered"):
        for token in getattr(verdict, name)[:10]:
            print(f"  {name}: {token}")
    return 0 if verdict.kept else 1


if __name__ == "__main__":
    sys.exit(main())
