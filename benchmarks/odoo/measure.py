"""The measurements: each takes the shop and one side, and returns the figures of one round.

A job counts as done when the database says so, and the ledger says that it ran once; a drain in which one of the two is
wrong fails the script.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness import percentile, say
from shop import PROCESSES, Shop, StandAlone

PATIENCE = 240.0
PAUSE = 0.05
WARM_UP = 10
TABLES = "sidestream_job, sidestream_job_record, bench_job, res_partner, queue_job, queue_job_lock"
DONE = {
    "ours": "SELECT count(*) FROM sidestream_job WHERE id > %s AND state = 'done'",
    "oca": "SELECT count(*) FROM queue_job WHERE id > %s AND state = 'done'",
}
WAITING = "SELECT count(*) FROM sidestream_job WHERE state = 'pending' AND queue = 'default'"
NEWEST = {
    "ours": "SELECT coalesce(max(id), 0) FROM sidestream_job",
    "oca": "SELECT coalesce(max(id), 0) FROM queue_job",
}
MORE_CHILDREN = 4
"""Of a second worker whose memory is measured: what children share counts for less, the more of them there are."""
CONFLICT = "A job met a conflict"
WORKS = {"ours": "children", "oca": "oca", "bare": "loops"}
"""Whose CPU runs the jobs of a side; PostgreSQL's, the supervisor's and Redis' are shown on their own."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the three jobs."""

    name: str
    model: str
    method: str


NOOP = Kind("no-op", "bench.job", "noop")
TOUCH = Kind("light write (an Integer)", "bench.job", "touch")
WRITE = Kind("heavy write (res.partner)", "res.partner", "bench_write")


class Drain(NamedTuple):
    """One drain; CPU in seconds a job."""

    rate: float
    own: float
    postgres: float
    supervisor: float
    redis: float

    @property
    def everything(self) -> float:
        """Return the CPU time of a job in all processes, the figure that other work disturbs least."""
        return sum(self[1:])


class Latency(NamedTuple):
    """Milliseconds of one round: to the job's first line from the call, from the commit, and from its return."""

    called_p50: float
    called_p99: float
    committed_p50: float
    committed_p99: float
    returned_p50: float
    returned_p99: float
    user_p50: float


class Enqueue(NamedTuple):
    """Seconds for ``size`` jobs, and milliseconds of one call; what PostgreSQL alone takes for the same rows."""

    size: int
    call: float
    commit: float
    one_p50: float
    rows: float = 0.0


class Process(NamedTuple):
    """MB of one process: its share (PSS), its own (USS), and all that it sees (RSS)."""

    pss: float
    uss: float
    rss: float


class Memory(NamedTuple):
    """The largest child of a worker with few and with more children, and a zygote; a stand-alone Odoo."""

    child: Process
    zygote: Process
    child_of_more: Process
    alone: Process


def ids_for(shop: Shop, kind: Kind, size: int) -> list[int]:
    """Return the records that ``size`` jobs of a kind are about."""
    return (shop.heavy if kind is WRITE else shop.light)[:size]


def drain(shop: Shop, side: str, kind: Kind, size: int) -> Drain:
    """Enqueue ``size`` jobs in one transaction and measure their run."""
    return bare_loop(shop, kind, size) if side == "bare" else worker(shop, side, kind, size)


def worker(shop: Shop, side: str, kind: Kind, size: int) -> Drain:
    """A drain by a worker, which begins as soon as the jobs are committed."""
    ids = ids_for(shop, kind, size)
    settle(shop)
    mark = scalar(shop, NEWEST[side])
    shop.user.ask("enqueue", side=side, model=kind.model, method=kind.method, ids=ids)
    early = wait(shop, lambda: shop.stamps.count(), 1, pause=0.001)
    before = shop.cpu()
    wait(shop, lambda: shop.stamps.count(), size)
    used = spent(before, shop.cpu())
    wait(shop, lambda: scalar(shop, DONE[side], mark), size)
    return result(shop, side, ids, used, size - early)


def bare_loop(shop: Shop, kind: Kind, size: int) -> Drain:
    """Drain with loops that receive the ids; the rows are in a queue that no worker serves."""
    ids = ids_for(shop, kind, size)
    settle(shop)
    mark = scalar(shop, NEWEST["ours"])
    *_, jobs = shop.user.ask("enqueue", side="ours", model=kind.model, method=kind.method, ids=ids, parked=True)
    pairs = list(zip(jobs, ids, strict=True))
    for number, loop in enumerate(shop.loops):
        loop.send("loop", model=kind.model, method=kind.method, pairs=pairs[number :: len(shop.loops)])
    early = wait(shop, lambda: shop.stamps.count(), 1, pause=0.001)
    before = shop.cpu()
    wait(shop, lambda: shop.stamps.count(), size)
    used = spent(before, shop.cpu())
    for loop in shop.loops:
        loop.answer()
    wait(shop, lambda: scalar(shop, DONE["ours"], mark), size)
    return result(shop, "bare", ids, used, size - early)


def result(shop: Shop, side: str, ids: list[int], used: dict[str, float], counted: int) -> Drain:
    """Check the ledger and return the figures."""
    times = [shop.stamps.at(number) for number in ids]
    runs = [shop.stamps.runs(number) for number in ids]
    again = sum(runs) - len(ids)
    if shop.stamps.count() != len(ids) or 0 in runs or again > (conflicts := shop.new_conflicts(CONFLICT)):
        raise AssertionError(
            f"{shop.stamps.count()} of {len(ids)} jobs ran, {again} starts too many for {conflicts} conflicts: "
            f"{shop.world.worker_log()[-2000:]}"
        )
    if again:
        say(
            f"{side}: {again} of {len(ids)} bodies ran again, because their transactions were rolled back by a conflict"
        )
    rate = (len(ids) - 1) / (max(times) - min(times))
    return Drain(rate, *(used[who] / counted for who in (WORKS[side], "postgres", "supervisor", "redis")))


def latency(shop: Shop, side: str, size: int) -> Latency:
    """One job after another on an idle system.

    The bare path ("bare") is the least that any queue of this kind does: INSERT one column, COMMIT, XADD; in the other
    process a blocked XREADGROUP and a SELECT that locks the row.
    """
    ids = ids_for(shop, NOOP, size + WARM_UP)
    settle(shop)
    if side == "bare":
        shop.begin_bare_path()
        shop.loops[0].send("receive", size=len(ids), redis_url=shop.world.redis_url())
    order = {"side": side, "model": NOOP.model, "method": NOOP.method, "redis_url": shop.world.redis_url()}
    called, committed, returned = shop.user.ask("paced", ids=ids, pause=PAUSE, **order)
    if side == "bare":
        times = shop.loops[0].answer()
    else:
        wait(shop, lambda: shop.stamps.count(), len(ids))
        times = [shop.stamps.at(number) for number in ids]
    found = []
    for since in (called, committed, returned):
        took = [(at - then) * 1000 for at, then in zip(times, since, strict=True)][WARM_UP:]
        found += [percentile(took, 0.5), percentile(took, 0.99)]
    user = [(at - then) * 1000 for at, then in zip(committed, called, strict=True)][WARM_UP:]
    return Latency(*found, percentile(user, 0.5))


def enqueue(shop: Shop, side: str, size: int, singles: int) -> Enqueue:
    """What the enqueueing transaction pays: ``size`` jobs, and a call of one job. Nothing of it ever runs."""
    settle(shop)
    mark = scalar(shop, NEWEST[side])
    order = {"side": side, "model": NOOP.model, "method": NOOP.method}
    took = shop.user.ask("one_by_one", ids=ids_for(shop, NOOP, singles + WARM_UP), **order)
    call, commit, _ = shop.user.ask("enqueue", ids=ids_for(shop, NOOP, size), parked=True, **order)
    rows = 0.0
    if side == "ours":
        rows = copy_rows(shop, mark)
        shop.look.execute("DELETE FROM sidestream_job_record WHERE job_id > %s", [mark])
    shop.look.execute(f"DELETE FROM {'sidestream_job' if side == 'ours' else 'queue_job'} WHERE id > %s", [mark])
    return Enqueue(size, call, commit, percentile(took[WARM_UP:], 0.5), rows)


def copy_rows(shop: Shop, mark: int) -> float:
    """Return the seconds in which PostgreSQL by itself writes the jobs after ``mark`` again, and their records' links.

    They are taken away first, so that the same rows come to the same places of the same indexes. Nothing is sent,
    parsed, checked or encoded.
    """
    look = shop.look
    for table, number in (("sidestream_job", "id"), ("sidestream_job_record", "job_id")):
        look.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table} WHERE {number} > %s", [mark])
        look.execute(f"DELETE FROM {table} WHERE {number} > %s", [mark])
    settle(shop)
    with look.transaction():
        began = time.perf_counter()
        look.execute("INSERT INTO sidestream_job SELECT * FROM kept_sidestream_job ORDER BY id")
        look.execute("INSERT INTO sidestream_job_record SELECT * FROM kept_sidestream_job_record ORDER BY job_id")
        took = time.perf_counter() - began
    look.execute("DROP TABLE kept_sidestream_job, kept_sidestream_job_record")
    return took


def memory(shop: Shop, size: int) -> Memory:
    """Run ``size`` mixed jobs in each child of fresh workers, and the same in a fresh stand-alone Odoo."""
    shop.worker.terminate()
    shop.worker.wait(60)
    settle(shop)
    loops = []
    for order, ids in mixed(shop, size):
        *_, jobs = shop.user.ask("enqueue", ids=ids, parked=True, **order)
        loops.append({"model": order["model"], "method": order["method"], "pairs": list(zip(jobs, ids, strict=True))})
    enqueue_mixed(shop, shop.user, size, PROCESSES)
    shop.end_all_but_worker()
    with ExitStack() as stack:
        alone = shop.stand_alone(stack, "alone-memory")
        for loop in loops:
            alone.ask("loop", **loop)
        child, zygote, whole = worker_memory(shop, PROCESSES, alone)
        with ExitStack() as briefly:
            enqueue_mixed(shop, shop.stand_alone(briefly, "user-memory"), size, MORE_CHILDREN)
        more, *_ = worker_memory(shop, MORE_CHILDREN, alone)
    return Memory(child, zygote, more, whole)


def enqueue_mixed(shop: Shop, user: StandAlone, size: int, children: int) -> None:
    """Enqueue ``size`` jobs for each of so many children."""
    for order, ids in mixed(shop, size):
        for _ in range(children):
            user.ask("enqueue", ids=ids, **order)


def worker_memory(shop: Shop, children: int, alone: StandAlone) -> tuple[Process, Process, Process]:
    """Let a fresh worker do what is enqueued; return the memory of its largest child, its zygote, and ``alone``."""
    shop.worker = shop.world.work("--children", str(children))
    wait(shop, lambda: -scalar(shop, WAITING), 0, check=False)
    found = max(megabytes(child.pid) for child in shop.children())
    (zygote,) = {child.ppid() for child in shop.children()}
    others = megabytes(zygote), megabytes(alone.process.pid)
    shop.worker.terminate()
    shop.worker.wait(60)
    return found, *others


def mixed(shop: Shop, size: int) -> list[tuple[dict[str, str], list[int]]]:
    """Return the orders of ``size`` jobs of every kind, and the records that each is about."""
    parts = [(NOOP, size * 9 // 20), (TOUCH, size * 9 // 20), (WRITE, size // 10)]
    return [
        ({"side": "ours", "model": kind.model, "method": kind.method}, ids_for(shop, kind, part))
        for kind, part in parts
    ]


def megabytes(pid: int) -> Process:
    """Return a process's memory."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) / 1024
    return Process(found["Pss"], found["Private_Clean"] + found["Private_Dirty"], found["Rss"])


def settle(shop: Shop) -> None:
    """Give every measure the same start: an empty ledger, no dirty pages, no dead tuples, fresh statistics."""
    shop.stamps.clear()
    shop.look.execute(f"VACUUM ANALYZE {TABLES}")
    shop.look.execute("CHECKPOINT")


def scalar(shop: Shop, query: str, *values: object) -> int:
    """Return the one value of a query."""
    return int(shop.look.execute(query, values).fetchone()[0])  # type: ignore[index]


def wait(shop: Shop, seen: Callable[[], int], wanted: int, *, pause: float = 0.02, check: bool = True) -> int:
    """Return what ``seen`` says as soon as it is ``wanted``; raise :class:`TimeoutError` when that takes too long."""
    end = time.monotonic() + PATIENCE
    while (found := seen()) < wanted:
        if time.monotonic() > end:
            raise TimeoutError(f"{wanted - found} of {wanted} jobs did not run within {PATIENCE:.0f} s.")
        if check:
            shop.check()
        time.sleep(pause)
    return found


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return what was used up between two readings."""
    return {name: after[name] - value for name, value in before.items()}
