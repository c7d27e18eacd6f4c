"""What :class:`tests.chaos.programs.Launcher` starts: it imports what a world's programs need, then only forks."""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import traceback

import sidestream.wiring.worker  # noqa: F401  # what is imported here costs no start
from sidestream import crashpoints
from sidestream.cli.main import main
from sidestream.process import die_with_parent
from tests.chaos import producer
from tests.chaos.programs import REQUEST


def serve(requests: socket.socket) -> None:
    """Answer requests until the harness is gone: fork a program (command, environment, log), or reap one (a pid)."""
    launcher = os.getpid()
    while request := requests.recv(REQUEST):
        match json.loads(request):
            case int(pid):
                requests.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
            case [command, environment, log]:
                pid = os.fork()
                if pid == 0:
                    requests.close()
                    die_with_parent(launcher)
                    _become(command, environment, log)
                requests.send(str(pid).encode())


def _become(command: list[str], environment: dict[str, str], log: str) -> None:
    """Be what ``command`` would be in this environment, a worker or a producer; never returns."""
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.environ.clear()
        os.environ.update(environment)
        importlib.reload(crashpoints)  # it reads the environment when it is imported
        if command[-1] == producer.MODULE:
            producer.main()
            code = 0
        else:
            sys.argv = ["sidestream", *command[-2:]]
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
