"""The tutorial works as printed: its files, its commands and their output, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream.broker.redis import embedded
from tests.acceptance.rig import open_folder

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATIENCE = 60.0
"""Seconds in which a command that is repeated must answer as printed, on a busy machine."""


class Reader:
    """Somebody who follows the page: a folder, a shell's variables and a worker in a second terminal."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SIDESTREAM_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SIDESTREAM_USER": "none",  # the reader is an ordinary user, who has nobody to become
            "SIDESTREAM_DATABASE_URL": database,
            "SIDESTREAM_DATA_DIR": str(folder / "data"),
            "SIDESTREAM_APP": "shop:actions",
        }

    def shell(self, command: str) -> str:
        """Run a command and return what it printed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr, self.said())
        return done.stdout

    def type(self, command: str, expected: list[str]) -> None:
        """Carry out one line of the page; a question is repeated until it is answered as printed."""
        if command == "sidestream worker run":
            with self.log.open("ab") as log:
                self.worker = subprocess.Popen(
                    ["sidestream", "worker", "run"], cwd=self.folder, env=self.variables, stdout=log, stderr=log
                )
            return
        if assigned := re.fullmatch(r"([A-Z]+)=\$\((.*)\)", command):
            self.variables[assigned[1]] = self.shell(assigned[2]).strip()
            return
        wanted = [re.sub(r"\$([A-Z]+)", lambda found: self.variables[found[1]], line) for line in expected]
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = " ".join(self.shell(command).split())
            missing = [line for line in wanted if line not in answer]
            if not missing:
                return
            assert time.monotonic() < deadline, (command, missing, answer, self.said())
            time.sleep(0.2)

    def said(self) -> str:
        return self.log.read_text()[-3000:] if self.log.exists() else ""

    def close(self) -> None:
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(30)
        for lock in self.folder.rglob("redis.lock"):
            embedded.stop(lock.parent)


@pytest.fixture
def reader(database: str) -> Iterator[Reader]:
    with open_folder() as folder:
        reader = Reader(folder, database)
        yield reader
        reader.close()


@pytest.mark.timeout(300)
def test_the_tutorial_works_as_it_is_printed(reader: Reader) -> None:
    readme = (ROOT / "README.md").read_text()
    kinds = set()
    for kind, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        kinds.add(kind)
        if kind == "bash":
            assert text in readme, "test_readme.py runs the installation as README prints it"
            continue
        if kind == "python":
            [name] = re.findall(r"\A# (\w+\.py)\n", text)
            (reader.folder / name).write_text(text)
            continue
        for step in text.removeprefix("$ ").split("\n$ "):
            command, *expected = step.splitlines()
            if command != "python ../scripts/postgres.py stop":  # the fixture's own server stays
                reader.type(command, expected)
    assert kinds == {"bash", "python", "console"}
    assert reader.shell("sidestream jobs --json") is not None
