"""A worker that cannot work reports it in one sentence before it claims a job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.server_process import unprivileged, worker_user

SIDESTREAM = str(Path(sys.executable).with_name("sidestream"))


def test_a_niceness_that_it_cannot_give_its_children() -> None:
    user = unprivileged(["nobody"])
    if user is not None and worker_user() == "none":
        pytest.skip("the unprivileged user cannot reach this code")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        if user is not None:
            os.chown(folder, user.uid, user.gid)
        (Path(folder) / "app.py").write_text("from sidestream import Actions\nactions = Actions()\n")
        done = subprocess.run(
            ["nice", "-n", "5", SIDESTREAM, "worker", "run"],
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "SIDESTREAM_APP": "app:actions",
                "SIDESTREAM_DATA_DIR": f"{folder}/data",
                "SIDESTREAM_NICE": "0",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    assert done.returncode == 2, done.stderr
    assert "nice=0 needs privileges that this user does not have; choose a value of at least 5." in done.stderr
