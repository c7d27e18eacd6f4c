"""The zygote's part of the wiring: small on purpose, because every start of a zygote imports it."""

from __future__ import annotations

import socket
import sys
from functools import partial

import msgpack

from sidestream.executors.python_call import PythonCall
from sidestream.job.codec import Signer
from sidestream.logs import set_up_logging
from sidestream.worker import zygote
from sidestream.worker.options import application_name


def run_zygote() -> None:
    """Be the zygote whose orders come over the inherited control socket: ``python -c`` with its two descriptors."""
    control = socket.socket(fileno=int(sys.argv[1]))
    packed, application = msgpack.unpackb(control.recv(1 << 16))
    app, dsn, keys, folder, log_level, log_format = application
    orders = zygote.Orders(*packed)
    set_up_logging(log_level, log_format)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    executor = PythonCall(
        app,
        dsn=dsn,
        signer=Signer([(key, secret) for key, secret in keys]),
        application_name=partial(application_name, orders.supervisor),
    )
    zygote.serve(control, int(sys.argv[2]), orders, executor)
