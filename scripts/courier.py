"""A courier's API as a separate process: slow, sometimes failing, and with a log of what it received.

``python scripts/courier.py LEDGER PORT [FASTEST SLOWEST]``: POST /shipments with an ``Idempotency-Key`` is answered
after 0.8 to 1.5 s; one in twenty fails, half of those after the parcel was accepted, as it happens when a reply is
lost. A key that was accepted before gets the same reference again. Every call is a line of JSON in the ledger.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAILS = 0.05


class Courier(ThreadingHTTPServer):
    """The server with its ledger."""

    daemon_threads = True

    def __init__(self, ledger: Path, port: int, fastest: float, slowest: float) -> None:
        super().__init__(("127.0.0.1", port), Desk)
        self._fastest, self._slowest = fastest, slowest
        self._ledger = ledger.open("a")
        self._lock = threading.Lock()
        self._accepted: dict[str, str] = {}

    def note(self, **line: object) -> None:
        """Write a line to the ledger."""
        self._ledger.write(json.dumps({"at": time.time(), **line}) + "\n")
        self._ledger.flush()

    def take(self, key: str, order: str) -> tuple[int, str]:
        """Take a parcel; return the status and the reference."""
        with self._lock:
            self.note(order=order, key=key, result="called")
        time.sleep(random.uniform(self._fastest, self._slowest))
        fate = random.random()
        with self._lock:
            if fate < FAILS / 2:
                self.note(order=order, key=key, result="refused")
                return 503, ""
            known = self._accepted.get(key)
            reference = self._accepted.setdefault(key, f"SHIP{len(self._accepted) + 1:05}")
            self.note(order=order, key=key, result="accepted" if known is None else "repeated", reference=reference)
        return (502, "") if fate < FAILS else (200, reference)


class Desk(BaseHTTPRequestHandler):
    """One request."""

    server: Courier

    def do_POST(self) -> None:
        """POST /shipments {"order": ...}."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        key = self.headers.get("Idempotency-Key")
        if self.path != "/shipments" or not key:
            self.send_error(400, "expected POST /shipments with an Idempotency-Key")
            return
        status, reference = self.server.take(key, body["order"])
        try:
            self._answer(status, reference)
        except BrokenPipeError:
            return  # the caller was killed meanwhile; the ledger has its call

    def _answer(self, status: int, reference: str) -> None:
        if status != 200:
            self.send_error(status, "the courier has a bad moment")
            return
        answer = json.dumps({"reference": reference}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Write nothing: the ledger says it all."""


def main() -> None:
    """Serve until killed."""
    arguments = sys.argv[1:]
    if len(arguments) not in (2, 4) or not arguments[1].isdigit():
        sys.exit(
            "usage: courier.py LEDGER PORT [FASTEST SLOWEST] (seconds that an answer takes, 0.8 and 1.5 if not given)"
        )
    fastest, slowest = (float(seconds) for seconds in (arguments[2:] or ("0.8", "1.5")))
    Courier(Path(arguments[0]), int(arguments[1]), fastest, slowest).serve_forever()


if __name__ == "__main__":
    main()
