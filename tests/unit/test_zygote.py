"""What the zygote leaves when its supervisor is gone."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from sidestream.worker import wire
from sidestream.worker.slots import Slots
from sidestream.worker.zygote import Orders, Zygote
from tests.unit.test_runner import ScriptedExecutor


def test_a_signal_after_its_end_is_written_to_no_closed_descriptor(tmp_path: Path) -> None:
    """Children that die with it raise SIGCHLD; Python would print a traceback for each."""
    ours, theirs = wire.pair()
    slots, descriptor = Slots.create(tmp_path / "slots", 1)
    before = signal.getsignal(signal.SIGCHLD)
    executor = ScriptedExecutor(load=list)
    try:
        ours.shutdown(socket.SHUT_WR)  # the supervisor is gone
        with theirs:
            Zygote(theirs, slots, lambda: executor, Orders("me", 1, 0, False, None, None)).run()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, before)
        ours.close()
        slots.close()
        os.close(descriptor)
