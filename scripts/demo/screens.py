"""Do what two people do in Odoo over the web client's JSON-RPC, and measure how long each waits."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests

PATIENCE = 120.0


class OdooError(Exception):
    """Odoo answered with an error."""


class Session:
    """A logged-in browser."""

    def __init__(self, url: str, database: str, login: str, password: str) -> None:
        self._url = url
        self._http = requests.Session()
        self._post("/web/session/authenticate", {"db": database, "login": login, "password": password})

    def call(self, model: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a model's public method."""
        params = {"model": model, "method": method, "args": list(args), "kwargs": kwargs}
        return self._post(f"/web/dataset/call_kw/{model}/{method}", params)

    def _post(self, path: str, params: dict[str, Any]) -> Any:
        answer = self._http.post(self._url + path, json={"jsonrpc": "2.0", "params": params}, timeout=PATIENCE).json()
        if "error" in answer:
            data = answer["error"].get("data", {})
            raise OdooError(data.get("message") or answer["error"]["message"])
        return answer["result"]


@dataclass(frozen=True)
class Sample:
    """One request of the stock screen."""

    began: float
    ended: float
    #: Whether a job had a transaction open before and after.
    busy: bool

    @property
    def ms(self) -> float:
        """How long it took, in milliseconds."""
        return (self.ended - self.began) * 1000


class StockScreen(threading.Thread):
    """A user who opens the stock screen repeatedly until stopped."""

    def __init__(self, session: Session, busy: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self._session = session
        self._busy = busy
        self._stop_wanted = threading.Event()
        self.samples: list[Sample] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Look, note, pause as a person's eye would, again."""
        try:
            while not self._stop_wanted.is_set():
                before = self._busy()
                began = time.time()
                self._open()
                ended = time.time()
                self.samples.append(Sample(began, ended, before and self._busy()))
                self._stop_wanted.wait(0.02)
        except Exception as error:  # noqa: BLE001  # told by whoever waits for the samples
            self.error = error

    def stop(self) -> list[Sample]:
        """Stop and return the samples."""
        self._stop_wanted.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.samples

    def _open(self) -> None:
        """Send the requests that the web client sends for Inventory > Products > Stock."""
        self._session.call("product.product", "get_views", views=[[False, "list"], [False, "search"]], options={})
        self._session.call(
            "product.product",
            "web_search_read",
            [["is_storable", "=", True]],
            specification={
                "default_code": {},
                "display_name": {},
                "qty_available": {},
                "free_qty": {},
                "incoming_qty": {},
                "outgoing_qty": {},
                "virtual_available": {},
                "categ_id": {"fields": {"display_name": {}}},
            },
            limit=80,
        )


def p95(samples: list[Sample]) -> float:
    """Return the 95th percentile in milliseconds (the smallest value that 95 % do not pass)."""
    ordered = sorted(sample.ms for sample in samples)
    return ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]
