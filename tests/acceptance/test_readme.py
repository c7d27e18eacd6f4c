"""README's first job works as a newcomer pastes it: a clean clone, a clean home, no root."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestream.broker.redis import embedded
from tests.support.server_process import unprivileged

ROOT = Path(__file__).parents[2]
KEPT = ("PIP_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""How this machine reaches a package index."""


@pytest.fixture
def clone() -> Iterator[Path]:
    """A folder that holds what is committed or will be, and that belongs to an ordinary user."""
    with tempfile.TemporaryDirectory(prefix="sidestream-readme-") as name:
        copy = Path(name) / "sidestream"
        listed = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
        names = subprocess.run([*listed, "--exclude-standard"], stdout=subprocess.PIPE, check=True).stdout
        copy.mkdir()
        pack = ["tar", "-C", str(ROOT), "--null", "--files-from=-", "--ignore-failed-read", "-c"]
        packed = subprocess.run(pack, input=names, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-C", str(copy), "-x", "--no-same-owner"], input=packed, check=True)
        user = unprivileged(("nobody",))
        if user is not None:
            subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", name], check=True)
        yield copy
        for lock in Path(name).rglob("redis.lock"):
            embedded.stop(lock.parent)


@pytest.mark.timeout(300)
def test_the_first_job_is_done_as_printed(clone: Path) -> None:
    [script] = re.findall(r"^```bash\n(.*?)^```", (clone / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    user = unprivileged(("nobody",))
    kept = {name: value for name, value in os.environ.items() if name.upper().startswith(KEPT)}
    home = clone.parent / "home"
    home.mkdir()
    if user is not None:
        os.chown(home, user.uid, user.gid)
    done = subprocess.run(
        ["bash", "-euc", script],
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
        cwd=clone,
        env={**kept, "PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^job (\d+) is enqueued$.*^job \1 is done$", done.stdout, re.MULTILINE | re.DOTALL), done.stdout
