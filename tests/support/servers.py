"""Private PostgreSQL and Redis servers for tests: each in its own folder, gone with the process that started it.

Started by root, they run as an unprivileged user. ``kill`` and ``freeze`` do to a server what an accident would.
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
"""Where Debian's packages put each major version; other places are looked for on the PATH."""
REDIS7 = Path(__file__).resolve().parents[2] / ".sidestream-dev" / "redis7" / "redis-server"
"""Where ``make setup`` unpacks Debian's Redis 7.0."""


class PostgresServer(Server):
    """A PostgreSQL cluster that trusts everybody on 127.0.0.1."""

    kind = "postgres"
    users = ("postgres", "nobody")
    death_signal = signal.SIGQUIT  # the postmaster ends its children; SIGKILL would leave them running
    stop_signal = signal.SIGINT

    def __init__(
        self, folder: Path | None = None, *, fsync: bool = True, settings: Mapping[str, object] | None = None
    ) -> None:
        """Lay the cluster into ``folder`` (None: a temporary one); ``settings`` are lines of postgresql.conf."""
        super().__init__(folder)
        self.data = self.folder / "data"
        self._settings: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "dynamic_shared_memory_type": "mmap",  # in the folder: a killed server leaves nothing in /dev/shm
            "shared_buffers": "64MB",
            "max_connections": 200,
            "fsync": "on" if fsync else "off",  # kills of processes lose nothing either way, a power cut would
            **(settings or {}),
        }

    def start(self) -> None:
        """Start it (from a copy of one cached empty cluster the first time) and return when it accepts connections."""
        if not self.data.exists():
            shutil.copytree(_empty_cluster(self), self.data)
            self.data.chmod(0o700)
        super().start()

    def close(self) -> None:
        """End it at once and remove its folder, if that was a temporary one."""
        if self.alive:
            self.thaw()
            own = self._running()
            own.send_signal(signal.SIGQUIT)  # unlike a kill it takes its shared memory along
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
        """End the sessions in the database ``name`` and drop every schema of it: cheaper by half than a new one."""
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
        """Whether the status line of postmaster.pid says so (what ``pg_ctl -w`` looks at)."""
        lines = self._pid_file()
        return len(lines) > 7 and lines[0] == str(self.pid_or_zero()) and lines[7].strip() == "ready"

    def pid_or_zero(self) -> int:
        """The postmaster's pid, 0 when it is not running."""
        return self._process.pid if self.alive and self._process is not None else 0

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _remove_shared_memory(self) -> None:
        """A killed postmaster leaves a 56-byte System V segment, named in its pid file, until the next start."""
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
        """``binary`` is "valkey" (the embedded one), "redis7" (Debian's) or a path; ``extra`` more arguments.

        The variables TEST_VALKEY and TEST_REDIS name other servers to stand for these two.
        """
        super().__init__(folder)
        original = {"valkey": find_valkey, "redis7": find_redis7}.get(str(binary), lambda: Path(binary))()
        self._binary = original if self.user is None else carried(original, self.user)(self.folder)
        self.socket_path = self.folder / "redis.sock"
        self._arguments = ["--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync, *extra]

    @property
    def url(self) -> str:
        """The URL of its unix socket."""
        return f"unix://{self.socket_path}"

    @property
    def tcp_url(self) -> str:
        """The URL of its TCP port."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client over the socket; ``options`` are redis-py's."""
        return redis.Redis.from_url(self.url, **options)

    def flushall(self) -> None:
        """Empty it."""
        with self.client() as client:
            client.flushall()

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`."""
        socket = ["--unixsocket", str(self.socket_path), "--unixsocketperm", "777"]
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--daemonize", "no"]
        return [str(self._binary), *own, *socket, "--save", "", "--maxmemory-policy", "noeviction", *self._arguments]

    def environment(self) -> dict[str, str]:
        """The embedded one's allocator settings; Redis from Debian finds the libraries that were unpacked beside it."""
        beside = {"LD_LIBRARY_PATH": str(self._binary.parent)} if any(self._binary.parent.glob("*.so*")) else {}
        return ALLOCATOR | beside

    def ready(self) -> bool:
        """Whether it answers over TCP, as itself and done loading (a leftover socket file proves nothing)."""
        try:
            with redis.Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                about: dict[str, Any] = client.info("server", "persistence")
        except redis.exceptions.RedisError:
            return False
        if about["loading"]:  # INFO is answered meanwhile, commands are not
            return False
        return self._process is not None and about["process_id"] == self._process.pid and self.socket_path.exists()


def find_valkey() -> Path:
    """Return the server that TEST_VALKEY names, else the embedded one."""
    named = os.environ.get("TEST_VALKEY")
    return Path(named) if named else find_server()


def find_redis7() -> Path:
    """Return the server that TEST_REDIS names, else Debian's Redis 7.0 as ``make setup`` unpacked it.

    Raises:
        ServerFailed: It is not there.
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
    """Return the path of a PostgreSQL program, of Debian's newest version; raise :class:`ServerFailed` without one."""
    debian = [path for path in POSTGRES_VERSIONS.glob(f"*/bin/{name}") if path.parts[-3].isdigit()]
    found = str(max(debian, key=lambda path: int(path.parts[-3]))) if debian else shutil.which(name)
    if found is None:
        raise ServerFailed(f"PostgreSQL's {name} was not found in {POSTGRES_VERSIONS} or on the PATH; run: make setup")
    return found


def _empty_cluster(server: PostgresServer) -> Path:
    """Return an empty cluster that the server's user owns, made once per machine, user and PostgreSQL build."""
    initdb = Path(postgres_binary("initdb")).resolve()
    uid = os.geteuid() if server.user is None else server.user.uid
    build = initdb.stat()
    cached = Path(tempfile.gettempdir()) / f"sidestream-initdb-{uid}-{build.st_size}-{int(build.st_mtime)}"
    with Path(f"{cached}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be making it
        if not cached.exists():
            draft = server.folder / "initdb"
            options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
            server.run(str(initdb), "-D", str(draft), *options)
            shutil.move(draft, cached)
    if cached.stat().st_uid not in (uid, 0):
        raise ServerFailed(f"The cached cluster {cached} belongs to somebody else; remove it.")
    return cached
