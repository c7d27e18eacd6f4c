"""Enqueue without any server named: the first job starts the embedded one."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream import Jobs, Settings
from sidestream.broker.protocol import lane
from sidestream.broker.redis import embedded
from sidestream.job.reference import NO_TAG8, Reference
from sidestream.job.rules import Rules
from sidestream.wiring.client import build_broker


@pytest.fixture
def settings() -> Iterator[Settings]:
    """Settings with a data folder that an unprivileged user can reach, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="sidestream-test-"))
    folder.chmod(0o755)
    yield Settings(data_dir=folder / "data")
    embedded.stop(folder / "data")
    shutil.rmtree(folder)


def test_the_first_direct_job_starts_the_embedded_server(settings: Settings) -> None:
    with Jobs(settings) as jobs:
        uuid = jobs.enqueue_direct("a", timeout=20)
    broker = build_broker(settings)
    broker.generation()
    broker.configure(NO_TAG8, Rules())
    [delivery] = broker.claim("test", [lane(NO_TAG8, "default")], free=1)
    broker.close()
    assert Reference.unpack(delivery.reference).uuid == uuid


def test_the_key_belongs_to_the_user_that_workers_become(settings: Settings) -> None:
    with Jobs(settings) as jobs:
        jobs.enqueue_direct("a", timeout=20)
    owner = (settings.data_dir / "signing.key").stat().st_uid
    drops = os.geteuid() == 0 and os.environ["SIDESTREAM_USER"] != "none"
    assert owner == (pwd.getpwnam(os.environ["SIDESTREAM_USER"]).pw_uid if drops else os.geteuid())
