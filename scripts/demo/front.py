"""Serve the demo's Odoo at one address, which forwards WebSockets to their own port.

Odoo with several processes serves WebSockets on a separate port and expects a proxy in front of both. A browser opens
a new connection for a WebSocket, so the first line of a connection decides where all of it goes.
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
    """Forward data until the source ends."""
    with contextlib.suppress(OSError):  # either side closed
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Front(socketserver.ThreadingTCPServer):
    """A proxy on a free port of this machine."""

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
