"""Put a TCP proxy in front of PostgreSQL that can stop answering."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Pooler:
    """A TCP proxy that always accepts connections, and forwards bytes unless it is frozen."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Forward nothing from now on."""
        self._flows.clear()

    def close(self) -> None:
        """Close every connection."""
        self._flows.set()
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [ours, theirs]
                for one, other in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while some := one.recv(1 << 16):
                self._flows.wait()
                other.sendall(some)
            self._flows.wait()
            other.shutdown(socket.SHUT_WR)


@contextmanager
def pooler_before(dsn: str) -> Iterator[tuple[Pooler, str]]:
    """Yield a pooler in front of the server of ``dsn``, and the URL that leads through it."""
    port = dsn.partition("127.0.0.1:")[2].partition("/")[0]
    pooler = Pooler(int(port))
    try:
        yield pooler, dsn.replace(f":{port}/", f":{pooler.port}/")
    finally:
        pooler.close()
