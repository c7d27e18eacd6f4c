"""Fairness, aging, order and limits under load and kills, counted from outside; ``make chaos`` runs it in full.

1. Company B adds one job a second, alone; then beside company A with very many waiting: B's wait, p95 (of few jobs,
   as `make test` has, the median: their p95 is the worst one, and that is the machine's).
2. Urgent jobs without a pause: how long a job of the lowest priority waits under an aging of a few seconds (of few
   jobs the median again).
3. Many short jobs with keys and limit keys while children are killed: lost, doubled, reordered, and more at once than
   the limit allows. A job's span is what its own action noted: from its first line to its last, or to the kill.

``python -m tests.chaos.sharing --waiting 100000 --jobs 100000 --seed N``; exit code 1 when a bound was broken.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import psycopg

from sidestream.job.rules import Limit, Scope
from sidestream.store import rules
from tests.chaos import checker, ledger, processes
from tests.chaos.app import SPANS
from tests.chaos.world import World

LONG = 0.3
"""Seconds of a job of company A: longer than what a worker holds in advance."""
AGING = 3.0
"""Seconds; of the full run."""
LIMIT = 2
"""At once, of each of so many values of a limit key: fewer than the children that could run them."""
SLOTS = 3
SHORT = 0.01
"""Seconds of a limited job."""
KEYS = 500
LOT = 5_000
PATIENCE = 1_200.0


@dataclass
class Found:
    """What came of it."""

    rank: float = 0.95
    """Which of the waits counts: this share of them is shorter."""
    alone: float = 0.0
    beside: float = 0.0
    samples: int = 0
    aging: float = AGING
    oldest: float = 0.0
    aged: int = 0
    verdict: checker.Verdict = field(default_factory=checker.Verdict)
    kills: int = 0
    limited: int = 0
    most_at_once: int = 0

    @property
    def bound(self) -> float:
        """Return how long B may wait, in seconds."""
        return LONG + 2 * self.alone

    @property
    def broken(self) -> list[str]:
        """Return a sentence for each bound that did not hold."""
        sentences = []
        if self.beside > self.bound:
            sentences.append(
                f"B waited {self.beside:.3f} s (p{100 * self.rank:g}) beside A; the bound is {self.bound:.3f} s."
            )
        if self.oldest > self.aging + 4 * LONG:
            sentences.append(
                f"A job of the lowest priority waited {self.oldest:.2f} s (p{100 * self.rank:g}) with an aging of "
                f"{self.aging:g} s."
            )
        if self.most_at_once > LIMIT:
            sentences.append(f"{self.most_at_once} jobs of one limit key ran at once; the limit is {LIMIT}.")
        if self.verdict.violations:
            sentences.append(str(self.verdict))
        return sentences

    def __str__(self) -> str:
        return (
            f"B's wait p{100 * self.rank:g} {self.alone:.3f} s alone, {self.beside:.3f} s beside A ({self.samples} "
            f"jobs, bound {self.bound:.3f}); lowest priority waited {self.oldest:.2f} s ({self.aged} jobs, "
            f"aging {self.aging:g} s); {self.verdict.promised} jobs with {self.kills} kills: {self.verdict}; "
            f"{self.limited} limited spans, at most {self.most_at_once} at once of {LIMIT}"
        )


def run(*, waiting: int, jobs: int, seconds: float, seed: int, aging: float = AGING, rank: float = Found.rank) -> Found:
    """Run the three parts, each in a separate world."""
    found = Found(aging=aging, rank=rank)
    with _world(seed) as world:
        _beside(world, found, waiting, seconds)
    with _world(seed) as world:
        _aging(world, found, seconds)
    with _world(seed) as world:
        _limits(world, found, jobs, random.Random(seed))
    return found


def _world(seed: int) -> World:
    return World(supervisors=2, hosts=2, seed=f"sharing-{seed}")


def _begin(world: World) -> None:
    (world.folder / SPANS).touch()
    world.give(world.folder / SPANS)
    world.start_workers()
    for worker in world.workers:
        world.wait_for_children(worker)


def _enqueue(world: World, jobs: Iterable[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    """Enqueue and promise (token, arguments, options) in batches."""
    source = iter(jobs)
    while lot := list(islice(source, LOT)):
        made = [world.jobs().job("share.work", (token,), arguments, **options) for token, arguments, options in lot]
        with world.jobs().transaction(world.connection()) as tx:
            ids = tx.enqueue_many(made)
            with world.connection().cursor() as cursor:
                for (token, _, options), row in zip(lot, ids, strict=True):
                    ledger.promise(cursor, token, row, options.get("key"))


def _beside(world: World, found: Found, waiting: int, seconds: float) -> None:
    _begin(world)
    alone = _paced(world, "alone", seconds)
    _enqueue(world, ((f"a{n}", {"seconds": LONG}, {"group": "A"}) for n in range(waiting)))
    world.wait_for("SELECT count(*) > 8 FROM ledger WHERE token LIKE 'a%%'")
    beside = _paced(world, "beside", seconds)
    found.alone, found.beside = (_at(found.rank, waits) for waits in (alone, beside))
    found.samples = len(beside)


def _paced(world: World, name: str, seconds: float) -> list[float]:
    """Enqueue one job of company B a second; return how long each waited for its first line."""
    asked = {}
    for number in range(int(seconds)):
        token = f"{name}{number}"
        _enqueue(world, [(token, {}, {"group": "B"})])
        asked[token] = time.monotonic()
        time.sleep(1.0)  # the pace of the traffic, not a wait
    world.wait_for("SELECT count(*) = %s FROM ledger WHERE token ~ %s", len(asked), f"^{name}[0-9]+$")
    starts = {words[1]: float(words[4]) for words in _spans(world) if words[0] == "start"}
    return [max(0.0, starts[token] - at) for token, at in asked.items()]


def _aging(world: World, found: Found, seconds: float) -> None:
    with world.connection().cursor() as cursor:
        rules.set_aging(cursor, found.aging, by="sharing")
    world.connection().commit()
    _begin(world)
    over = threading.Event()
    urgent = iter(range(1_000_000))
    low: dict[str, float] = {}
    deadline = time.monotonic() + max(seconds, 4 * found.aging)
    while time.monotonic() < deadline:
        [(waiting,)] = world.query("SELECT count(*) FROM sidestream_job WHERE state = 'pending' AND priority = 0")
        if waiting < 60:
            lot = [(f"u{next(urgent)}", {"seconds": LONG / 3}, {"priority": 0}) for _ in range(60)]
            _enqueue(world, lot)
        if not low or time.monotonic() - max(low.values()) > found.aging:
            token = f"low{len(low)}"
            _enqueue(world, [(token, {}, {"priority": 9})])
            low[token] = time.monotonic()
        over.wait(0.05)
    world.wait_for("SELECT count(*) = %s FROM ledger WHERE token LIKE 'low%%'", len(low))
    starts = {words[1]: float(words[4]) for words in _spans(world) if words[0] == "start"}
    found.aged = len(low)
    found.oldest = _at(found.rank, [starts[token] - at for token, at in low.items()])


def _limits(world: World, found: Found, jobs: int, chance: random.Random) -> None:
    with world.connection().cursor() as cursor:
        rules.set_limit(cursor, Scope.KEY, "slot", Limit(concurrency=LIMIT), by="sharing")
    world.connection().commit()
    _begin(world)

    def made() -> Iterable[tuple[str, dict[str, Any], dict[str, Any]]]:
        for number in range(jobs):
            options: dict[str, Any] = {"group": chance.choice("ABC"), "priority": chance.choice((2, 5, 5, 8))}
            arguments: dict[str, Any] = {}
            if number % 2:
                options["key"] = arguments["key"] = f"key{chance.randrange(KEYS)}"
                options["priority"] = 5
            if number % 5 == 0:
                slot = f"slot:{chance.randrange(SLOTS)}"
                options["limit"] = arguments["slot"] = slot
                arguments["seconds"] = SHORT
            yield f"j{number}", arguments, options

    feeding = threading.Thread(target=lambda: _enqueue(world, made()), daemon=True)
    feeding.start()
    killed: dict[int, float] = {}
    deadline = time.monotonic() + PATIENCE
    while feeding.is_alive() or _any_open(world):
        if time.monotonic() > deadline:
            break
        time.sleep(chance.uniform(0.2, 1.0))  # accidents happen at random
        children = [child for worker in world.workers for child in world.children(worker)]
        if children:
            victim = chance.choice(children)
            processes.kill(victim)
            killed[victim] = time.monotonic()
            found.kills += 1
    feeding.join()
    found.verdict = checker.wait_until_settled(world.connection(), world.folder, 120.0, world.dead_direct)
    found.limited, found.most_at_once = _most_at_once(_spans(world), killed)


def _any_open(world: World) -> bool:
    """Return whether a job is pending, on a separate session because another thread uses the world's."""
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT EXISTS (SELECT FROM sidestream_job WHERE state = 'pending')").fetchone()
    return bool(row and row[0])


def _spans(world: World) -> list[list[str]]:
    return ledger.lines(world.folder / SPANS)


def _most_at_once(spans: Sequence[Sequence[str]], killed: dict[int, float]) -> tuple[int, int]:
    """Return how many spans had a limit key, and the most of one key that overlapped."""
    open_spans: dict[tuple[str, str], tuple[str, float]] = {}
    edges: dict[str, list[tuple[float, int]]] = {}
    count = 0
    for word, token, slot, pid, at in spans:
        if slot == "-":
            continue
        if word == "start":
            count += 1
            open_spans[token, pid] = (slot, float(at))
        else:
            _, began = open_spans.pop((token, pid))
            edges.setdefault(slot, []).extend([(began, 1), (float(at), -1)])
    for (_, pid), (slot, began) in open_spans.items():
        edges.setdefault(slot, []).extend([(began, 1), (killed[int(pid)], -1)])
    most = 0
    for marks in edges.values():
        running = 0
        for _, step in sorted(marks):
            running += step
            most = max(most, running)
    return count, most


def _at(rank: float, values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * rank))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sharing", description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of company B's traffic, twice")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    options = parser.parse_args(arguments)
    print(f"sharing: {options.waiting} waiting, {options.jobs} jobs with kills, seed {options.seed}", flush=True)
    found = run(waiting=options.waiting, jobs=options.jobs, seconds=options.seconds, seed=options.seed)
    print(f"sharing: {found}", flush=True)
    for sentence in found.broken:
        print(f"  BROKEN: {sentence}")
    return 1 if found.broken else 0


if __name__ == "__main__":
    sys.exit(main())
