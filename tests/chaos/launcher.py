"""What :class:`tests.chaos.programs.Launcher` starts: it imports what a supervisor needs, then only forks."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys

import sidestream.wiring_worker  # noqa: F401  # what is imported here costs no start
from sidestream import crashpoints
from sidestream.cli.main import main
from sidestream.process import die_with_parent
from tests.chaos.programs import REQUEST


def serve(requests: socket.socket) -> None:
    """Fork a supervisor for each request (its environment and its log) until the harness is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel; the harness holds pidfds
    launcher = os.getpid()
    while request := requests.recv(REQUEST):
        environment, log = json.loads(request)
        pid = os.fork()
        if pid == 0:
            requests.close()
            die_with_parent(launcher)
            _become_supervisor(environment, log)
        requests.send(str(pid).encode())


def _become_supervisor(environment: dict[str, str], log: str) -> None:
    """Be what ``sidestream worker`` would be in this environment; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.environ.clear()
        os.environ.update(environment)
        importlib.reload(crashpoints)  # it reads the environment when it is imported
        sys.argv = ["sidestream", "worker"]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
