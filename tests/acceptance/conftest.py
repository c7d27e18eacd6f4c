"""Fixtures for the tests of the command line: run a command, read its output, expect a refusal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidestream.cli.main import main
from tests.acceptance.rig import Rig, open_folder
from tests.chaos.programs import Launcher
from tests.support.servers import RedisServer


class Finished(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Finished]


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts what a world consists of without its imports."""
    with Launcher() as launcher:
        yield launcher


@pytest.fixture
def rig(database: str, redis_server: RedisServer) -> Iterator[Rig]:
    """A rig without a worker, for tests that start and end them."""
    with open_folder() as folder:
        rig = Rig(folder, database, redis_server.url)
        yield rig
        rig.close()


@pytest.fixture
def run(
    database: str,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Run ``sidestream`` with these words in a folder of its own, inside this process: a start costs half a second."""
    for name in os.environ:
        if name.startswith("SIDESTREAM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SIDESTREAM_CONFIG", "noted here, so that what --config sets is undone after the test")
    monkeypatch.setenv("SIDESTREAM_DATABASE_URL", database)
    monkeypatch.setenv("SIDESTREAM_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SIDESTREAM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SIDESTREAM_USER", "none")  # nobody else may enter this folder
    monkeypatch.setenv("SIDESTREAM_PUBLISH_TIMEOUT", "10")  # a busy machine may take long to start the relay's thread
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: str) -> Finished:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["sidestream", *words])
        monkeypatch.delenv("SIDESTREAM_CONFIG", raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        code = ended.value.code
        return Finished(code if isinstance(code, int) else 0, said.out, said.err)

    return call


@pytest.fixture
def ready(run: Run) -> Run:
    """The same, with the tables made."""
    assert run("db", "init").returncode == 0
    return run


def answer(done: Finished) -> Any:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def refused(done: Finished, code: int, said: str) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
