"""Build the executor of a zygote, which imports this module at every start."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgpack

from sidestream.errors import SettingsError
from sidestream.executors.protocol import Executor
from sidestream.executors.python.executor import PythonExecutor
from sidestream.job.codec import Signer
from sidestream.logs import set_up_logging
from sidestream.worker import zygote
from sidestream.worker.options import application_name


def run_zygote() -> None:
    """Run the zygote on the inherited descriptors in ``sys.argv``."""
    control = socket.socket(fileno=int(sys.argv[1]))
    packed, application = msgpack.unpackb(control.recv(1 << 16))
    app, odoo_config, odoo_database, database_tag, dsn, keys, folder, log_level, log_format, quiet_jobs = application
    orders = zygote.Orders(*packed)
    set_up_logging(log_level, log_format, quiet_jobs=quiet_jobs)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a killed child has printed to a file or pipe is there
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = partial(application_name, orders.worker)
    make: Callable[[], Executor]
    if odoo_config is not None:
        make = partial(_odoo_executor, Path(odoo_config), odoo_database, database_tag, dsn, name)
    else:
        make = partial(PythonExecutor, app, dsn=dsn, signer=Signer([(k, s) for k, s in keys]), application_name=name)
    zygote.serve(control, int(sys.argv[2]), orders, make)


def _odoo_executor(config: Path, database: str, tag: bytes, dsn: str, name: Callable[[int], str]) -> Executor:
    """Import Odoo, which only Odoo's own Python can, and return its executor."""
    try:
        from sidestream.executors.odoo.executor import OdooExecutor
    except ImportError as error:
        raise SettingsError(
            f"Odoo cannot be imported ({error}); run the worker with the Python that runs Odoo."
        ) from error
    return OdooExecutor(config, database, database_tag=tag, dsn=dsn, application_name=name)
