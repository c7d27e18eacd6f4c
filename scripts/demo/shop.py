"""Set up the demo: Odoo with its demo data, its HTTP server, a worker, a courier and orders."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from front import Front
from screens import Session, StockScreen

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))  # tests.support

from tests.support.odoo import DATABASE, OdooWorld
from tests.support.server_process import free_port, popen

HERE = Path(__file__).parent
CHILDREN = 2
SERVER_PROCESSES = 4
BUSY = """SELECT count(*) FROM pg_stat_activity
          WHERE application_name ~ '^sidestream/.*/[0-9]+$' AND xact_start IS NOT NULL"""


def wait_until(what: str, seen: Callable[[], bool], seconds: float = 180.0) -> float:
    """Wait for ``seen`` and return how long it took. End the demo if it takes too long."""
    began = time.monotonic()
    while not seen():
        if time.monotonic() - began > seconds:
            sys.exit(f"The demo stops: it waited {seconds:g} s until {what}.")
        time.sleep(0.01)
    return time.monotonic() - began


class Shop:
    """Odoo, courier and worker of one demo."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.world = OdooWorld(("sidestream", "sidestream_demo"), settings={"nice": 19, "idle_cpu_only": True})
        self._say = say
        self._courier: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes]
        self._open = contextlib.ExitStack()
        self._watching = threading.Event()
        self._busy = False

    def start(self) -> None:
        """Start everything and log the two users in."""
        world, say = self.world, self._say
        say("Odoo 19 with its demo data: a private database (made once, then copied), and the two addons ...")
        world.start()
        say("Odoo's HTTP server, the courier's API, one worker with two niced children ...")
        self.server = world.serve(SERVER_PROCESSES)
        self.front = self._open.enter_context(Front(self.server.port, self.server.gevent_port))
        self.ledger = world.folder / "courier.jsonl"
        port = free_port()
        program = str(HERE.parent / "courier.py")
        with (world.folder / "courier.log").open("wb") as log:
            command = [sys.executable, program, str(self.ledger), str(port)]
            self._courier = popen(command, None, world.folder, output=log.fileno())
        wait_until("the courier answers", lambda: self._listens(port), 30)
        self.look = world.connect()
        self.user = Session(self.server.url, DATABASE, "admin", "admin")
        self.second = Session(self.server.url, DATABASE, "demo", "demo")
        self.courier_port = port
        courier = f"http://127.0.0.1:{port}"
        self.user.call("ir.config_parameter", "set_param", "sidestream_demo.courier_url", courier)
        self.user.call("ir.config_parameter", "set_param", "report.url", self.server.url)
        self._goods()
        self.worker = world.work("--children", str(CHILDREN))
        wait_until("the worker has its children", lambda: self.check_worker() and len(self.children()) == CHILDREN)
        threading.Thread(target=self._watch, daemon=True).start()

    def check_worker(self) -> bool:
        """End the demo with the worker's last log lines if the worker has stopped."""
        if (code := self.worker.poll()) is not None:
            said = "\n".join(self.world.worker_log().splitlines()[-15:])
            sys.exit(f"The worker ended with code {code}. Its last log lines:\n{said}")
        return True

    @staticmethod
    def _listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _goods(self) -> None:
        values = {"name": "Desk lamp", "is_storable": True, "invoice_policy": "order", "list_price": 39}
        self._product = self.user.call("product.product", "create", [values])[0]
        self._carrier = self.user.call("delivery.carrier", "search", [], limit=1)[0]
        self._partners = self.user.call(
            "res.partner", "search", [["customer_rank", ">", 0], ["is_company", "=", True]], limit=5
        )

    # -- orders --------------------------------------------------------------------------------------------------

    def quotations(self, count: int) -> list[int]:
        """Make quotations and return their ids."""
        values = [
            {
                "partner_id": self._partners[number % len(self._partners)],
                "carrier_id": self._carrier,
                "order_line": [[0, 0, {"product_id": self._product, "product_uom_qty": 1 + number % 3}]],
            }
            for number in range(count)
        ]
        return list(self.user.call("sale.order", "create", values))

    def confirm(self, order: int) -> float:
        """Confirm a quotation as a user does; return the response time in seconds."""
        began = time.monotonic()
        self.user.call("sale.order", "action_confirm", [order])
        return time.monotonic() - began

    def mode(self, mode: str) -> None:
        """Set what Confirm does: "off" (without shipping and invoicing), "inline", or "background"."""
        self.user.call("ir.config_parameter", "set_param", "sidestream_demo.mode", "off" if mode == "off" else "on")
        companies = self.user.call("res.company", "search", [])
        self.user.call("res.company", "write", companies, {"sidestream_enabled": mode != "inline"})

    def pending_jobs(self) -> int:
        """Return how many jobs are not finished."""
        return self.number("SELECT count(*) FROM sidestream_job WHERE state = 'pending'")

    def number(self, statement: str) -> int:
        """Return the one number that ``statement`` selects."""
        row = self.look.execute(statement).fetchone()
        return int(row[0]) if row is not None else 0

    # -- looking -------------------------------------------------------------------------------------------------

    def stock_screen(self) -> StockScreen:
        """Let the second user open the stock screen repeatedly."""
        screen = StockScreen(self.second, lambda: self._busy)
        screen.start()
        return screen

    def _watch(self) -> None:
        with psycopg.connect(self.world.postgres.dsn(DATABASE), autocommit=True) as connection:
            while not self._watching.wait(0.01):
                found = connection.execute(BUSY).fetchone()
                self._busy = bool(found and found[0])

    def calls(self) -> list[dict[str, Any]]:
        """Return the lines of the courier's ledger."""
        if not self.ledger.exists():
            return []
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]

    def children(self) -> list[psutil.Process]:
        """Return the worker's children: what its zygote forked."""
        try:
            zygotes = psutil.Process(self.worker.pid).children()
            return [child for zygote in zygotes for child in zygote.children()]
        except psutil.NoSuchProcess:
            return []

    # -- accidents -----------------------------------------------------------------------------------------------

    def kill_a_child(self) -> float:
        """Kill a child while it waits for the courier; return the seconds until the courier is called again."""
        found: list[tuple[psutil.Process, dict[str, Any]]] = []

        def calling() -> bool:
            open_calls: dict[str, dict[str, Any]] = {}
            for line in self.calls():
                if line["result"] == "called":
                    open_calls[line["key"]] = line
                else:
                    open_calls.pop(line["key"], None)
            for child in self.children():
                try:
                    ports = [c.raddr.port for c in child.connections() if c.status == "ESTABLISHED"]
                except psutil.Error:
                    continue  # it ended between the two looks
                if self.courier_port in ports and open_calls:
                    found[:] = [(child, next(iter(open_calls.values())))]
                    return True
            return False

        wait_until("a child waits for the courier", calling)
        child, line = found[0]
        child.kill()
        killed = time.time()

        def again() -> list[float]:
            return [
                one["at"]
                for one in self.calls()
                if one["result"] == "called" and one["key"] == line["key"] and one["at"] > killed
            ]

        wait_until("the killed child's job calls again", lambda: bool(again()))
        return min(again()) - killed

    def empty_redis(self) -> None:
        """Delete everything in Redis with FLUSHALL."""
        redis.Redis.from_url(self.world.redis_url()).flushall()

    def close(self) -> None:
        """Stop everything and delete the files."""
        self._watching.set()
        self._open.close()
        if self._courier is not None:
            self._courier.kill()
            self._courier.wait()
        self.world.close()


def median(seconds: list[float]) -> float:
    """Return the median, rounded to milliseconds."""
    return round(statistics.median(seconds), 3)
