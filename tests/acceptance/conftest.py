"""Run commands of the command line in tests, and check their output and errors."""

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
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Finished]


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """A launcher that starts workers and producers without repeating their imports."""
    with Launcher() as launcher:
        yield launcher


@pytest.fixture
def rig(database: str, redis_server: RedisServer) -> Iterator[Rig]:
    """A rig without a worker, for tests that start and stop workers."""
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
    """Run ``sidestream`` in an empty folder, within this process, which saves half a second."""
    for name in os.environ:
        if name.startswith("SIDESTREAM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SIDESTREAM_CONFIG", "set here, so that monkeypatch undoes what --config sets")
    monkeypatch.setenv("SIDESTREAM_DATABASE_URL", database)
    monkeypatch.setenv("SIDESTREAM_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SIDESTREAM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SIDESTREAM_USER", "none")  # no other account may enter this folder
    monkeypatch.setenv("SIDESTREAM_PUBLISH_TIMEOUT", "10")  # on a busy machine, the relay's thread may start late
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
    """The same fixture after ``sidestream db init``."""
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
