"""A client whose settings are wrong, at first: its jobs are rows, and are published when the settings are right."""

from __future__ import annotations

import threading
import time
from typing import Any

from sidestream import Jobs, Settings
from sidestream.broker.protocol import Broker
from sidestream.errors import SettingsError
from tests.integration.test_client import claimed, rows


def test_wrong_settings_do_not_prevent_enqueueing(
    connection: Any, settings: Settings, dsn: str, broker: Broker
) -> None:
    """They are read where nobody waits for them, and again until they are right."""
    asked = threading.Semaphore(0)
    right = threading.Event()

    def read() -> Settings:
        asked.release()
        if not right.is_set():
            raise SettingsError("There is no setting 'nise'.")
        return settings

    with Jobs.reading(read) as jobs:
        with jobs.transaction(connection) as tx:
            first = tx.enqueue("invoice.print", (1,))
        assert not tx.published
        assert rows(dsn) == [(first, "invoice.print", "default", None)]
        assert asked.acquire(timeout=20)
        right.set()
        deadline = time.monotonic() + 20
        while not (found := claimed(broker, dsn)):
            assert time.monotonic() < deadline, "the settings were never read again"
            threading.Event().wait(0.01)
        assert found == [first]
