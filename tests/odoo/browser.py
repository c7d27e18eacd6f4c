"""A logged-in user of a test's Odoo, over the web client's JSON-RPC."""

from __future__ import annotations

import json
import urllib.request
from http.cookiejar import CookieJar
from typing import Any


class OdooError(Exception):
    """Odoo answered with an error."""


class Session:
    """One session."""

    def __init__(self, url: str, database: str, login: str, password: str) -> None:
        self._url = url
        self._http = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._post("/web/session/authenticate", {"db": database, "login": login, "password": password})

    def call(self, model: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a model's public method."""
        params = {"model": model, "method": method, "args": list(args), "kwargs": kwargs}
        return self._post(f"/web/dataset/call_kw/{model}/{method}", params)

    def fails(self, model: str, method: str, *args: Any, **kwargs: Any) -> str:
        """Call a method that must raise, and return the message."""
        try:
            self.call(model, method, *args, **kwargs)
        except OdooError as error:
            return str(error)
        raise AssertionError(f"{model}.{method} did not fail")

    def _post(self, path: str, params: dict[str, Any]) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "params": params}).encode()
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"})
        with self._http.open(request, timeout=120) as reply:
            answer = json.loads(reply.read())
        if "error" in answer:
            data = answer["error"].get("data", {})
            raise OdooError(f"{data.get('name', '')}: {data.get('message') or answer['error']['message']}")
        return answer["result"]
