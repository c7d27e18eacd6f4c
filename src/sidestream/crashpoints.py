"""Named points at which tests stop this process.

Unless ``SIDESTREAM_CRASH_AT`` is set when the process starts, :func:`crash_point` does nothing. With
``SIDESTREAM_CRASH_AT=name:nth``, every nth passage of that point sends the datagram ``name pid`` to the unix socket in
``SIDESTREAM_CRASH_SOCKET`` and stops the process with SIGSTOP. The test harness then kills processes and resumes the
others with SIGCONT. Without a socket, the process kills itself with SIGKILL at the nth passage.
"""

from __future__ import annotations

import os
import signal
import socket

_name, _, _nth = os.environ.get("SIDESTREAM_CRASH_AT", "").partition(":")
_every = int(_nth or 1) if _name else 0
_passages = 0


def crash_point(name: str) -> None:
    """Stop here if the harness requests it; ``tests/chaos/points.py`` lists the names."""
    if _every and name == _name:
        _stop()


def _stop() -> None:
    global _passages
    _passages += 1
    if _passages % _every:
        return
    path = os.environ.get("SIDESTREAM_CRASH_SOCKET")
    if path is None:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as harness:
        try:
            harness.sendto(f"{_name} {os.getpid()}".encode(), path)
        except OSError:
            return  # the harness has ended, so nothing would resume this process
    os.kill(os.getpid(), signal.SIGSTOP)
