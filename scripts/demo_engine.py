"""``make demo``: a shop prints and announces its orders in the background while the demo injects faults.

Starts a private PostgreSQL, and a worker with two children and its embedded Valkey, in a temporary folder; confirms
orders; kills a child in the middle of a job, then the whole worker, and empties Redis; and counts from outside what was
lost, done twice or out of order. Everything is removed at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import redis
from rich.console import Console
from rich.table import Table

from sidestream import Jobs, Settings
from sidestream.broker.redis import embedded
from sidestream.store import schema

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # tests.support

from sidestream.wiring.data_folder import server_url
from tests.support.servers import PostgresServer

ORDERS = 200
PRINT_SECONDS = 0.02
SLOW_ORDER = 0
SLOW_SECONDS = 1.0
CARRIERS = 3
HERE = Path(__file__).parent
console = Console()


def wait_until(what: str, seen: Callable[[], bool], seconds: float = 60.0) -> float:
    """Wait for ``seen``; return how long it took. Ends the demo with one sentence when it never comes."""
    began = time.monotonic()
    while not seen():
        if time.monotonic() - began > seconds:
            sys.exit(f"The demo waited {seconds:g} s in vain until {what}.")
        time.sleep(0.005)
    return time.monotonic() - began


class Shop:
    """The user's side: a database, a client, and a worker process."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.starts_file = folder / "starts"
        self.starts_file.touch()
        self.starts_file.chmod(0o666)  # the worker runs as an unprivileged user
        os.environ.update(
            SIDESTREAM_DATABASE_URL=dsn,
            SIDESTREAM_DATA_DIR=str(folder / "data"),
            SIDESTREAM_APP="demo_actions:actions",
            SIDESTREAM_LEASE="3",
            SIDESTREAM_RENEW_INTERVAL="1",
            SIDESTREAM_RECOVERY_PERIOD="2",
            DEMO_STARTS=str(self.starts_file),
        )
        self.settings = Settings()
        self.log = (folder / "worker.log").open("a")
        self.look = psycopg.connect(dsn, autocommit=True)
        with self.look.transaction(), self.look.cursor() as cursor:
            schema.install(cursor)
            cursor.execute("CREATE TABLE printed (order_id bigint)")
            cursor.execute("CREATE TABLE announced (id bigserial, order_id bigint)")
        self.database = psycopg.connect(dsn)
        self.worker = self.start_worker()
        wait_until("the worker answers", lambda: b"serves" in (folder / "worker.log").read_bytes())
        self.jobs = Jobs(self.settings)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start ``sidestream worker run`` as an operator would."""
        return subprocess.Popen(
            [Path(sys.executable).with_name("sidestream"), "worker", "run"], cwd=HERE, stderr=self.log
        )

    def confirm(self, order: int, seconds: float = PRINT_SECONDS) -> float:
        """Confirm an order: one transaction, two jobs; return how long the user waited, in seconds."""
        began = time.monotonic()
        with self.jobs.transaction(self.database) as transaction:
            transaction.enqueue("invoice.print", (order, seconds))
            transaction.enqueue("courier.announce", (order,), key=f"carrier:{order % CARRIERS}")
        return time.monotonic() - began

    def number(self, statement: str) -> int:
        """Return the one number that ``statement`` selects."""
        row = self.look.execute(statement).fetchone()
        return int(row[0]) if row is not None else 0

    def starts(self, order: int) -> list[tuple[int, float]]:
        """Return (pid, Unix seconds) of every start of the printing of ``order``."""
        lines = [line.split() for line in self.starts_file.read_text().splitlines()]
        return [(int(pid), float(at)) for number, pid, at in lines if int(number) == order]

    def all_done(self) -> bool:
        """Whether no job is open."""
        return self.number("SELECT count(*) FROM sidestream_job WHERE state = 'pending'") == 0

    def close(self) -> None:
        """Stop the worker, and with it the embedded server."""
        self.worker.terminate()
        self.worker.wait(30)
        embedded.stop(self.settings.data_dir)


def kill_a_child(shop: Shop) -> float:
    """Kill a child in the middle of a job; return the seconds until that job runs again."""
    shop.confirm(SLOW_ORDER, SLOW_SECONDS)
    wait_until("the slow invoice is being printed", lambda: len(shop.starts(SLOW_ORDER)) == 1)
    psutil.Process(shop.starts(SLOW_ORDER)[0][0]).kill()
    killed = time.time()
    wait_until("the slow invoice is printed again", lambda: len(shop.starts(SLOW_ORDER)) == 2)
    return shop.starts(SLOW_ORDER)[1][1] - killed


def kill_the_worker(shop: Shop) -> None:
    """Kill the worker with everything it started, as a power cut would, and start another one."""
    for process in [*psutil.Process(shop.worker.pid).children(recursive=True), psutil.Process(shop.worker.pid)]:
        process.kill()
    shop.worker.wait()
    shop.worker = shop.start_worker()


def empty_redis(shop: Shop) -> None:
    """FLUSHALL: whatever Redis knew of pending jobs is gone."""
    redis.Redis.from_url(server_url(shop.settings)).flushall()


def run(shop: Shop) -> dict[str, float]:
    """Confirm the orders, with the three accidents in between; return the figures."""
    began = time.monotonic()
    say = console.print
    say(f"Confirming {ORDERS} orders; each has its invoice printed and its parcel announced in the background.")
    waited = [shop.confirm(order) for order in range(1, ORDERS // 2 + 1)]
    say("Killing a child with SIGKILL in the middle of a job ...")
    rerun = kill_a_child(shop)
    say("Killing the whole worker with SIGKILL, and starting it again ...")
    kill_the_worker(shop)
    waited += [shop.confirm(order) for order in range(ORDERS // 2 + 1, ORDERS + 1)]
    say("Emptying Redis with FLUSHALL ...")
    empty_redis(shop)
    wait_until("every job is done", shop.all_done)
    orders = ORDERS + 1
    printed = shop.number("SELECT count(DISTINCT order_id) FROM printed")
    announced = shop.number("SELECT count(DISTINCT order_id) FROM announced")
    return {
        "orders": orders,
        "jobs_done": shop.number("SELECT count(*) FROM sidestream_job WHERE state = 'done'"),
        "lost": 2 * orders - printed - announced,
        "doubled": shop.number("SELECT (SELECT count(*) FROM printed) + (SELECT count(*) FROM announced)")
        - printed
        - announced,
        "out_of_order": shop.number(
            f"SELECT count(*) FROM announced a JOIN announced b ON a.order_id % {CARRIERS} = b.order_id % {CARRIERS}"
            f" AND a.id < b.id AND a.order_id > b.order_id AND {SLOW_ORDER} NOT IN (a.order_id, b.order_id)"
        ),
        "user_waited_median_ms": round(sorted(waited)[len(waited) // 2] * 1000, 2),
        "user_waited_most_ms": round(max(waited) * 1000, 1),
        "killed_rerun_s": round(rerun, 3),
        "total_s": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """Run the demo; the exit code is 1 when something was lost, doubled or out of order."""
    console.print("Starting a private PostgreSQL and a worker with its embedded Valkey ...")
    with tempfile.TemporaryDirectory(prefix="sidestream-demo-") as name, PostgresServer() as postgres:
        folder = Path(name)
        folder.chmod(0o755)
        shop = Shop(folder, postgres.create_database("shop"))
        try:
            figures = run(shop)
        finally:
            shop.close()
    table = Table("what", "measured")
    for what, figure in figures.items():
        table.add_row(what.replace("_", " "), f"{figure:g}")
    console.print(table)
    print(json.dumps({"sidestream_demo": figures}))
    return int(bool(figures["lost"] or figures["doubled"] or figures["out_of_order"]))


if __name__ == "__main__":
    sys.exit(main())
