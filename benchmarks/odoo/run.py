"""Compare the cost of a job in a real Odoo with OCA's queue_job, and with no queue at all.

Sidestream: ``records.enqueue().method()`` and a worker with two children. OCA: ``records.with_delay().method()`` and a
prefork server with two HTTP workers and channels root:2. The limit of the machine: two bare loops that receive the ids,
with the store's own acquire statement, the job's environment, the method, "done" and one commit. All three call the
same methods in the same database and write to the same ledger.

After a crash, Sidestream runs a job again unless its effect is committed; effect and "done" are one transaction, so the
effect happens once. OCA commits "started" first, then effect and "done" together; it finds a failed job ten seconds
later. The jobs of a dead bare loop do not run again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # beside the other scripts: harness and stamps

import measure
from harness import Bar, Figure, Row, figure, finish, head, in_turn, options, say
from measure import MORE_CHILDREN, NOOP, TOUCH, WRITE, Drain, Enqueue, Kind, Latency, Memory
from shop import PROCESSES, Shop

MANY = 10_000
SINGLES = 200
HEAVY_ROUNDS = 3
"""Times the rounds of the others: its bar is a tenth of the bare loop, and on a shared machine that differs by a fifth
from one drain of five seconds to the next."""
OCA = "OCA queue_job, 2 HTTP workers (failed jobs again after 10 s)"
LOOP = "bare loop in 2 processes (survives no crash)"
BARE = "bare path (INSERT, COMMIT, XADD, XREADGROUP, SELECT FOR UPDATE)"
T = TypeVar("T")


def main() -> None:
    """Measure and report."""
    asked = options(__doc__, jobs=3_000, quick_jobs=240)
    sizes = {
        NOOP: {"ours": asked.jobs, "oca": asked.jobs // 6, "bare": asked.jobs},
        TOUCH: {"ours": asked.jobs, "oca": asked.jobs // 6, "bare": asked.jobs},
        WRITE: {"ours": asked.jobs // 5, "oca": asked.jobs // 10, "bare": asked.jobs // 5},
    }
    hops = 30 if asked.quick else 300
    say("One Odoo for all sides: a database (made once, then copied), three addons, their processes ...")
    with Shop(MANY, max(asked.jobs // 5, 200)) as shop:
        head("odoo", {**shop.versions(), "jobs": f"{asked.jobs:,} a drain; OCA and heavy writes fewer, by their rates"})
        warm_up(shop)
        hop = in_turn(asked.rounds, {s: partial(measure.latency, shop, s, hops) for s in ("ours", "oca", "bare")})
        drains = {
            kind: in_turn(
                asked.rounds * (HEAVY_ROUNDS if kind is WRITE else 1),
                {f"{kind.name}: {side}": partial(measure.drain, shop, side, kind, n) for side, n in of.items()},
            )
            for kind, of in sizes.items()
        }
        calls = in_turn(
            asked.rounds,
            both(lambda side: measure.enqueue(shop, side, MANY if side == "ours" else hops * 4, SINGLES)),
        )
        say("memory: a fresh worker, a fresh stand-alone Odoo, the same jobs ...")
        memory = measure.memory(shop, 200 if asked.quick else 2_000)
    rows = [*latency_rows(hop["ours"], hop["oca"], hop["bare"])]
    for kind, found in drains.items():
        rows += drain_rows(kind, *found.values())
    rows += enqueue_rows(calls["ours"], calls["oca"])
    rows += memory_rows(memory, 200 if asked.quick else 2_000)
    finish("odoo", rows)


def both(measured: Callable[[str], T]) -> dict[str, Callable[[], T]]:
    """Return the measure of our side and of OCA's."""
    return {side: partial(measured, side) for side in ("ours", "oca")}


def warm_up(shop: Shop) -> None:
    """Let every process run some jobs of every kind: caches of the ORM are filled when the measures begin."""
    for side in ("ours", "oca", "bare"):
        for kind in (NOOP, TOUCH, WRITE):
            say(f"warming up: {side}, {kind.name}")
            measure.drain(shop, side, kind, 40)


def latency_rows(ours: Sequence[Latency], oca: Sequence[Latency], bare: Sequence[Latency]) -> list[Row]:
    """Return the rows of one job at a time.

    The bar was set from figures that count from the commit's return. It is asked of the two stricter beginnings too,
    each beside the least that a queue of this kind can come to; the last one holds the user's own INSERT and COMMIT.
    """
    sooner = Bar("ratio", "<=", 0.2)
    wanted = {
        "returned": "idle, the commit's return to its caller -> start",
        "committed": "idle, PostgreSQL's commit -> start",
        "called": "idle, call of enqueue (its INSERT and COMMIT included) -> start",
    }
    rows = []
    for name, what in wanted.items():
        for share in ("p50", "p99"):
            column_of = partial(column, name=f"{name}_{share}")
            rows.append(Row(f"{what}, {share}", column_of(ours), "ms", OCA, column_of(oca), sooner))
            if name != "returned":
                rows.append(Row(f"  its limit, {BARE}, {share}", column_of(bare), "ms", OCA, column_of(oca)))
    user = "idle, call of enqueue -> PostgreSQL's commit, p50: the user waits"
    return [
        *rows,
        Row(user, column(ours, "user_p50"), "ms", OCA, column(oca, "user_p50")),
        Row(f"  its limit, {BARE}", column(bare, "user_p50"), "ms", OCA, column(oca, "user_p50")),
    ]


def drain_rows(kind: Kind, ours: Sequence[Drain], oca: Sequence[Drain], loop: Sequence[Drain]) -> list[Row]:
    """Return the rows of one kind of job."""
    rate = column(ours, "rate")
    heavy = kind is WRITE
    what = f"{kind.name}, jobs/s"

    def cpu(whose: str, name: str, theirs: Sequence[Drain], against: str) -> Row:
        return Row(f"  {whose} CPU", column(ours, name, 1e6), "us a job", against, column(theirs, name, 1e6))

    return [
        Row(what, rate, "jobs/s", OCA, column(oca, "rate"), None if heavy else Bar("ratio", ">=", 6)),
        Row(what, rate, "jobs/s", LOOP, column(loop, "rate"), Bar("ratio", ">=", 0.9 if heavy else 0.8)),
        cpu("everybody's", "everything", oca, "OCA"),
        cpu("everybody's", "everything", loop, "bare loop"),
        cpu("the job's processes'", "own", oca, "OCA"),
        cpu("the job's processes'", "own", loop, "bare loop"),
        cpu("PostgreSQL's", "postgres", oca, "OCA"),
        cpu("PostgreSQL's", "postgres", loop, "bare loop"),
        Row("  supervisor's CPU", column(ours, "supervisor", 1e6), "us a job"),
        Row("  Redis' CPU", column(ours, "redis", 1e6), "us a job"),
    ]


def enqueue_rows(ours: Sequence[Enqueue], oca: Sequence[Enqueue]) -> list[Row]:
    """Return the rows of what the user's transaction pays."""
    call, one = figure([found.call for found in ours]), column(ours, "one_p50")
    theirs = figure([found.call * MANY / found.size for found in oca])
    with_delay = f"OCA, with_delay() a job, {oca[0].size:,} measured"
    return [
        Row(f"{MANY:,} jobs in one call (split=1)", call, "s", with_delay, theirs, Bar("value", "<", 0.7)),
        Row("  its limit, PostgreSQL's own part: the same rows by INSERT ... SELECT", column(ours, "rows"), "s"),
        Row("  their commit and publishing", column(ours, "commit"), "s"),
        Row("one call (company read, no commit), p50", one, "ms", "OCA", column(oca, "one_p50"), Bar("value", "<", 1)),
    ]


def memory_rows(found: Memory, jobs: int) -> list[Row]:
    """Return the rows of memory, and the least that a child of so few can come to."""
    alone, theirs = figure(found.alone.pss), "stand-alone Odoo, same jobs"
    bar = Bar("ratio", "<", 0.3)
    few, more = PROCESSES + 1, MORE_CHILDREN + 1
    least = f"  its limit: all pages shared by {few} processes, the zygote among them (RSS / {few})"
    return [
        Row(f"PSS of a child, of {PROCESSES}, after {jobs:,} mixed jobs each", figure(found.child.pss), "MB", theirs,
            alone, bar),
        Row(least, figure(found.child.rss / few), "MB", theirs, alone),
        Row("  its private memory", figure(found.child.uss), "MB", theirs, figure(found.alone.uss)),
        Row("  PSS of the zygote, once a worker", figure(found.zygote.pss), "MB", theirs, alone),
        Row(f"PSS of a child, of {MORE_CHILDREN}, after the same", figure(found.child_of_more.pss), "MB", theirs, alone,
            bar),
        Row(f"  its limit (RSS / {more})", figure(found.child_of_more.rss / more), "MB", theirs, alone),
    ]  # fmt: skip


def column(rounds: Sequence[object], name: str, times: float = 1) -> Figure:
    """Return one value of every round."""
    return figure([getattr(found, name) * times for found in rounds])


if __name__ == "__main__":
    main()
