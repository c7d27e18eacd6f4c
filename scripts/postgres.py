"""``make postgres``: run a private PostgreSQL for development in this project's folder.

``start`` (the default) makes it when it is not there and prints its URL; ``url`` does so and prints nothing else;
``stop`` stops it; ``status`` prints its URL.
Run as root it belongs to an unprivileged user; where that user cannot reach this folder, the temporary folder is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from sidestream.process import Account, reaches
except ModuleNotFoundError as error:
    sys.exit(f"postgres: {error}; activate the virtual environment with Sidestream: source firstjob/bin/activate")

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # tests.support

from tests.support.server_process import ServerFailed, free_port, unprivileged
from tests.support.servers import PostgresServer, postgres_binary

PROJECT = Path(__file__).resolve().parents[1]
LOG = "postgres.log"


def folder_for(user: Account | None) -> Path:
    """Return where the cluster lives."""
    inside = PROJECT / ".sidestream-dev"
    inside.mkdir(exist_ok=True)
    if user is None or reaches(user, inside):
        return inside / "postgres"
    name = hashlib.blake2b(os.fsencode(PROJECT), digest_size=6).hexdigest()
    elsewhere = Path(tempfile.gettempdir()) / f"sidestream-dev-{name}"
    print(
        f"postgres: the user {user.name!r} cannot reach this project's folder, so the cluster is in {elsewhere}",
        file=sys.stderr,
    )
    return elsewhere


def run(user: Account | None, folder: Path, *command: str) -> int:
    """Run one of PostgreSQL's programs as its user and return the exit code."""
    return subprocess.run(
        command,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else user.groups,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    ).returncode


def make(user: Account | None, folder: Path) -> int:
    """Create the cluster with a free port and return the exit code."""
    print(f"postgres: making a private cluster in {folder}", file=sys.stderr)
    folder.mkdir(mode=0o700, parents=True)
    if user is not None:
        os.chown(folder, user.uid, user.gid)
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
    code = run(user, folder, postgres_binary("initdb"), "-D", str(folder / "data"), *options)
    if code:
        shutil.rmtree(folder)
        return code
    lines = [
        f"port = {free_port()}",
        "listen_addresses = '127.0.0.1'",
        "unix_socket_directories = ''",
        "max_connections = 200",
    ]
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write("\n".join(lines) + "\n")
    return 0


def url_of(folder: Path) -> str:
    """Return the cluster's URL."""
    settings = (folder / "data" / "postgresql.conf").read_text().splitlines()
    port = next(line.partition("=")[2].strip() for line in reversed(settings) if line.startswith("port"))
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


def main(command: str) -> int:
    """Carry out ``command`` and return the exit code."""
    user = unprivileged(PostgresServer.users)
    folder = folder_for(user)
    control = [postgres_binary("pg_ctl"), "-D", str(folder / "data"), "-s", "-w"]
    running = folder.exists() and run(user, folder, *control, "status") == 0
    if command in ("start", "url"):
        if not folder.exists() and (code := make(user, folder)):
            return code
        if not running and run(user, folder, *control, "-l", str(folder / LOG), "start"):
            print(f"postgres: it did not start; read {folder / LOG}", file=sys.stderr)
            return 1
        print(url_of(folder) if command == "url" else f"postgres: running at {url_of(folder)}")
        return 0
    if command == "stop":
        return run(user, folder, *control, "-m", "fast", "stop") if running else 0
    if command == "status":
        print(f"postgres: running at {url_of(folder)}" if running else "postgres: not running; start it: make postgres")
        return 0
    print(f"postgres: {command!r} is no command; expected start, url, stop or status.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "start"))
    except ServerFailed as error:
        sys.exit(f"postgres: {error}")
