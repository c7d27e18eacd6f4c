"""The one address of the demo's Odoo: WebSockets go to the port that has them, everything else to the other.

Odoo with several processes serves WebSockets on a port of its own and expects a proxy before both. A browser opens a
connection of its own for a WebSocket, so the first line that arrives on a connection tells where all of it goes.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from types import TracebackType
from typing import Self

CHUNK = 1 << 16
FIRST_LINE_LIMIT = 8192
"""Bytes within which the first line of a request has to end."""


class _Connection(socketserver.BaseRequestHandler):
    server: Front

    def handle(self) -> None:
        client: socket.socket = self.request
        head = b""
        while b"\n" not in head and len(head) < FIRST_LINE_LIMIT:
            more = client.recv(CHUNK)
            if not more:
                return
            head += more
        words = head.split(b"\r\n", 1)[0].split()
        real_time = len(words) > 1 and words[1].split(b"?")[0] == b"/websocket"
        port = self.server.real_time_port if real_time else self.server.http_port
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as odoo:
            odoo.sendall(head)
            back = threading.Thread(target=_pass_on, args=(odoo, client), daemon=True)
            back.start()
            _pass_on(client, odoo)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on what arrives until there is no more."""
    with contextlib.suppress(OSError):  # either side went away
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Front(socketserver.ThreadingTCPServer):
    """Listens on a free port of this machine until it is closed."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, http_port: int, real_time_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.http_port = http_port
        self.real_time_port = real_time_port
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
