"""Run private PostgreSQL and Redis servers for tests, each in its own folder.

They end with the process that started them. If root starts them, they run as an unprivileged user.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from sidestream.broker.redis.embedded import ALLOCATOR, carried, find_server
from tests.support.server_process import Server, ServerFailed

POSTGRES_VERSIONS = Path("/usr/lib/postgresql")
"""Folder of Debian's packages, one per major version; other installations are found on the PATH."""
REDIS7 = Path(__file__).resolve().parents[2] / ".sidestream-dev" / "redis7" / "redis-server"
"""Debian's Redis 7.0, unpacked by ``make setup``."""


class PostgresServer(Server):
    """A PostgreSQL cluster that trusts every client on 127.0.0.1."""

    kind = "postgres"
    users = ("postgres", "nobody")
    death_signal = signal.SIGQUIT  # the postmaster ends its children; SIGKILL would leave them running
    stop_signal = signal.SIGINT

    def __init__(
        self, folder: Path | None = None, *, fsync: bool = True, settings: Mapping[str, object] | None = None
    ) -> None:
        """Use ``folder`` (None: a temporary one) and ``settings`` of postgresql.conf."""
        super().__init__(folder)
        self.data = self.folder / "data"
        self._settings: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "dynamic_shared_memory_type": "mmap",  # in the folder: a killed server leaves nothing in /dev/shm
            "shared_buffers": "64MB",
            "max_connections": 200,
            "fsync": "on" if fsync else "off",  # "off" loses nothing when a process is killed, only in a power cut
            **(settings or {}),
        }

    def start(self) -> None:
        """Start it, at first from a copy of a cached empty cluster, and wait for its answer."""
        if not self.data.exists():
            shutil.copytree(_empty_cluster(self), self.data)
            self.data.chmod(0o700)
        super().start()

    def close(self) -> None:
        """Stop it immediately, and remove its folder if that is a temporary one."""
        if self.alive:
            self.thaw()
            own = self._running()
            own.send_signal(signal.SIGQUIT)  # unlike SIGKILL, this removes its shared memory
            try:
                own.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._remove_shared_memory()
        super().close()

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of ``database`` for the superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, template: str = "template0") -> str:
        """Create the database ``name`` and return its URL."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)
        return self.dsn(name)

    def empty_database(self, name: str) -> None:
        """End the sessions of the database and drop its schemas, in half the time of a new one."""
        with psycopg.connect(self.dsn(name), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            found = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
            ).fetchall()
            for (schema,) in found:
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
            connection.execute(
                "CREATE SCHEMA public AUTHORIZATION pg_database_owner; GRANT USAGE ON SCHEMA public TO PUBLIC"
            )

    def drop_database(self, name: str) -> None:
        """Drop the database ``name`` and end the sessions in it."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`."""
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return [postgres_binary("postgres"), "-D", str(self.data), "-p", str(self.port), *options]

    def ready(self) -> bool:
        """Return whether the status line of postmaster.pid says "ready", as ``pg_ctl -w`` does."""
        lines = self._pid_file()
        return len(lines) > 7 and lines[0] == str(self.pid_or_zero()) and lines[7].strip() == "ready"

    def pid_or_zero(self) -> int:
        """Return the postmaster's pid, or 0 if it is not running."""
        return self._process.pid if self.alive and self._process is not None else 0

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _remove_shared_memory(self) -> None:
        """Remove the System V segment of a killed postmaster, which its pid file names."""
        lines = self._pid_file()
        if len(lines) > 6 and (found := re.search(r"(\d+)\s*$", lines[6])):
            subprocess.run(["ipcrm", "-m", found[1]], stderr=subprocess.DEVNULL, check=False)  # it may be gone


class RedisServer(Server):
    """A Valkey or Redis with a socket in its folder and a TCP port on 127.0.0.1."""

    kind = "redis"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        binary: str | Path = "valkey",
        appendfsync: str = "everysec",
        appendonly: bool = True,
        extra: Sequence[str] = (),
    ) -> None:
        """Use ``binary``: "valkey" (the embedded one), "redis7" (Debian's) or a path.

        ``extra`` are further arguments. The variables TEST_VALKEY and TEST_REDIS replace these two binaries.
        """
        super().__init__(folder)
        original = {"valkey": find_valkey, "redis7": find_redis7}.get(str(binary), lambda: Path(binary))()
        self._binary = original if self.user is None else carried(original, self.user)(self.folder)
        self.socket_path = self.folder / "redis.sock"
        self._arguments = ["--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync, *extra]

    @property
    def url(self) -> str:
        """Return the URL of its unix socket."""
        return f"unix://{self.socket_path}"

    @property
    def tcp_url(self) -> str:
        """Return the URL of its TCP port."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client over the socket with ``options`` of redis-py."""
        return redis.Redis.from_url(self.url, **options)

    def flushall(self) -> None:
        """Delete all keys."""
        with self.client() as client:
            client.flushall()

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`."""
        socket = ["--unixsocket", str(self.socket_path), "--unixsocketperm", "777"]
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--daemonize", "no"]
        return [str(self._binary), *own, *socket, "--save", "", "--maxmemory-policy", "noeviction", *self._arguments]

    def environment(self) -> dict[str, str]:
        """Return the allocator settings of the embedded server, and the folder of libraries."""
        beside = {"LD_LIBRARY_PATH": str(self._binary.parent)} if any(self._binary.parent.glob("*.so*")) else {}
        return ALLOCATOR | beside

    def ready(self) -> bool:
        """Return whether this process answers over TCP and has loaded its data."""
        try:
            with redis.Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                about: dict[str, Any] = client.info("server", "persistence")
        except redis.exceptions.RedisError:
            return False
        if about["loading"]:  # it answers INFO meanwhile, but no commands
            return False
        return self._process is not None and about["process_id"] == self._process.pid and self.socket_path.exists()


def find_valkey() -> Path:
    """Return the server that TEST_VALKEY names, else the embedded one."""
    named = os.environ.get("TEST_VALKEY")
    return Path(named) if named else find_server()


def find_redis7() -> Path:
    """Return the server that TEST_REDIS names, else Debian's Redis 7.0.

    Raises:
        ServerFailed: It was not found.
    """
    if named := os.environ.get("TEST_REDIS"):
        return Path(named)
    if REDIS7.exists():
        return REDIS7
    raise ServerFailed(f"Redis 7.0 was not found at {REDIS7}; run: make setup")


def has_redis7() -> bool:
    """Return whether :func:`find_redis7` finds one."""
    return bool(os.environ.get("TEST_REDIS")) or REDIS7.exists()


def postgres_binary(name: str) -> str:
    """Return the path of a PostgreSQL program; raise :class:`ServerFailed` without one."""
    debian = [path for path in POSTGRES_VERSIONS.glob(f"*/bin/{name}") if path.parts[-3].isdigit()]
    found = str(max(debian, key=lambda path: int(path.parts[-3]))) if debian else shutil.which(name)
    if found is None:
        raise ServerFailed(f"PostgreSQL's {name} was not found in {POSTGRES_VERSIONS} or on the PATH; run: make setup")
    return found


def _empty_cluster(server: PostgresServer) -> Path:
    """Return an empty cluster, created once per machine, user and PostgreSQL build."""
    initdb = Path(postgres_binary("initdb")).resolve()
    uid = os.geteuid() if server.user is None else server.user.uid
    build = initdb.stat()
    cached = Path(tempfile.gettempdir()) / f"sidestream-initdb-{uid}-{build.st_size}-{int(build.st_mtime)}"
    with Path(f"{cached}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be creating it
        if not cached.exists():
            draft = server.folder / "initdb"
            options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
            server.run(str(initdb), "-D", str(draft), *options)
            shutil.move(draft, cached)
    if cached.stat().st_uid not in (uid, 0):
        raise ServerFailed(f"The cached cluster {cached} belongs to another user; remove it.")
    return cached
