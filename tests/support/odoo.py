"""Set up a real Odoo: database, configuration, HTTP server and workers in one temporary folder.

The database with Odoo's modules (and demo data) is created once and kept in ``.sidestream-dev/odoo-base``. A second one
with the addons under test is kept beside it until a file of this repository changes. Every world starts from a copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from sidestream.broker.redis import embedded
from sidestream.process import Account, account
from sidestream.settings import Settings
from sidestream.wiring.data_folder import server_url
from tests.support.server_process import Server, ServerFailed, free_port, sweep, worker_user
from tests.support.servers import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
ADDONS = ROOT / "addons"
TOOLS = (ROOT / ".sidestream-dev").resolve()
DATABASE = "shop"
SHOP = ("sale_management", "stock", "account", "delivery")
"""Odoo's modules for selling, shipping and invoicing."""
INSTALL_PATIENCE = 900.0
"""Longest time, in seconds, to install modules on a busy machine."""


def odoo_command() -> list[str]:
    """Return the command that runs Odoo: ODOO_COMMAND, else the one of ``make odoo``."""
    given = os.environ.get("ODOO_COMMAND")
    if given:
        return shlex.split(given)
    command = [TOOLS / "odoo-venv" / "bin" / "python", TOOLS / "odoo" / "usr" / "bin" / "odoo"]
    if not all(part.exists() for part in command):
        raise ServerFailed("There is no Odoo here; run: make odoo")
    return [str(part) for part in command]


class OdooServer(Server):
    """The HTTP server of a world."""

    kind = "odoo"
    death_signal = 15  # its own processes end with it

    def __init__(self, world: OdooWorld, workers: int) -> None:
        """Start ``workers`` processes ("prefork"), or with 0 one process with threads."""
        super().__init__(world.folder / "server")
        self.user = world.account  # an account that can read the code: in a private folder, only root can
        self._world = world
        self._workers = workers
        #: The port of WebSockets if there are several processes.
        self.gevent_port = free_port()

    @property
    def url(self) -> str:
        """Return its URL for a browser."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`."""
        return [
            *self._world.odoo(),
            f"--http-port={self.port}",
            f"--gevent-port={self.gevent_port}",
            f"--workers={self._workers}",
        ]

    def environment(self) -> dict[str, str]:
        """See :meth:`Server.environment`."""
        return self._world.environment()

    def ready(self) -> bool:
        """Return whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/web/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class OdooWorld:
    """A database with its servers and workers."""

    def __init__(
        self,
        addons: Sequence[str],
        *,
        base: Sequence[str] = SHOP,
        demo_data: bool = True,
        addon_paths: Sequence[Path] = (),
        settings: Mapping[str, object] | None = None,
        options: Mapping[str, object] | None = None,
        fsync: bool = True,
        keep: bool = True,
    ) -> None:
        """Describe a world, which :meth:`start` starts.

        Args:
            addons: Addons to install in addition to ``base``.
            base: Odoo's own modules.
            demo_data: Whether to load Odoo's demo data.
            addon_paths: Folders of addons in addition to ``addons/``.
            settings: Sidestream's settings, for the section ``[sidestream]``.
            options: Further options of Odoo.
            fsync: Whether PostgreSQL waits for the disk.
            keep: Whether to keep the database with the addons for later worlds.
        """
        sweep("odoo")
        self.folder = Path(tempfile.mkdtemp(prefix=f"sidestream-odoo-{os.getpid()}-"))
        self.folder.chmod(0o755)
        self.user = worker_user() if os.geteuid() == 0 else "none"
        self.postgres = PostgresServer(fsync=fsync, settings={"shared_buffers": "256MB"})
        self.config = self.folder / "odoo.conf"
        self.log = self.folder / "odoo.log"
        self._addons = tuple(addons)
        self._base = tuple(base)
        self._keep = keep
        self._demo_data = demo_data
        self._addon_paths = (ADDONS, *addon_paths)
        self._settings = dict(settings or {})
        self._options = dict(options or {})
        self._workers: list[subprocess.Popen[bytes]] = []
        self._servers: list[OdooServer] = []

    # -- database ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start PostgreSQL with a copy of the database with the addons."""
        base = _base(self._base, demo_data=self._demo_data)
        if not self._addons or not self._keep:
            self.begin_with(base)
            if self._addons:
                self.install(*self._addons)
            return self
        with _installed(base, self._addons, self._addon_paths) as kept:
            self.begin_with(kept)
        return self

    def begin_with(self, base: Path) -> None:
        """Start PostgreSQL with a copy of the folder ``base``."""
        _copy(base / "data", self.postgres.data)
        self.postgres.start()
        self.prepare(base / "filestore")

    def keep_in(self, base: Path) -> None:
        """Stop PostgreSQL and replace the folder ``base`` by this world's contents."""
        self.postgres.stop()
        draft = base.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _copy(self.postgres.data, draft / "data")
        _copy(self.folder / "data" / "filestore", draft / "filestore")
        shutil.rmtree(base, ignore_errors=True)
        draft.rename(base)

    def prepare(self, filestore: Path | None = None, **options: object) -> None:
        """Create the folders and the configuration with further ``options`` of Odoo."""
        for name in ("data", "sidestream", "home", "server"):
            (self.folder / name).mkdir()
        if filestore is not None:
            _copy(filestore, self.folder / "data" / "filestore")
        self._options |= options
        self._write_config()
        self._own()

    def install(self, *modules: str, upgrade: bool = False) -> None:
        """Install (or upgrade) modules with Odoo's own command line."""
        self.run_odoo("-u" if upgrade else "-i", ",".join(modules))

    def run_odoo(self, *arguments: str) -> str:
        """Run Odoo with these arguments until it exits; return its output."""
        return _run([*self.odoo(), "--no-http", "--stop-after-init", *arguments], self)

    def odoo(self) -> list[str]:
        """Return Odoo's command line for this database."""
        return [*odoo_command(), "server", "-c", str(self.config), "-d", DATABASE]

    def connect(self) -> psycopg.Connection[Any]:
        """Return an autocommit connection to the database, to inspect it from outside."""
        return psycopg.connect(self.postgres.dsn(DATABASE), autocommit=True)

    def environment(self) -> dict[str, str]:
        """Return the environment of Odoo's processes and of the workers."""
        # PYTHONPATH, because `make mutants` runs the same tests with a patched copy of the engine.
        passed_on = ("SIDESTREAM_CRASH", "PYTHONPATH")
        kept = {name: value for name, value in os.environ.items() if name.startswith(passed_on)}
        return kept | {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder / "home"),
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def account(self) -> Account | None:
        """Return the user of Odoo's processes; None if no privileges are dropped."""
        return None if self.user == "none" else account(self.user)

    # -- processes -----------------------------------------------------------------------------------------------

    def serve(self, workers: int = 0) -> OdooServer:
        """Start an HTTP server and return it."""
        server = OdooServer(self, workers)
        self._servers.append(server)
        server.start()
        return server

    def work(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start ``sidestream worker run`` and return it when its application is loaded."""
        log = self.folder / f"worker{len(self._workers)}.log"
        command = [odoo_command()[0], "-m", "sidestream", "--odoo-config", str(self.config)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--odoo-database", DATABASE, "worker", "run", *arguments],
                env=self.environment() | dict(environment or {}),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._workers.append(process)
        return process

    def worker_log(self) -> str:
        """Return the output of the last worker."""
        return (self.folder / f"worker{len(self._workers) - 1}.log").read_text(errors="replace")

    def redis_url(self) -> str:
        """Return the URL of this world's embedded server; start it if necessary."""
        return server_url(Settings(data_dir=self.folder / "sidestream", user=self.user))

    def close(self) -> None:
        """Stop all processes and remove the folder."""
        for process in self._workers:
            if process.poll() is None:
                process.terminate()
        for process in self._workers:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for server in self._servers:
            server.close()
        if (self.folder / "sidestream" / "redis.lock").exists():
            embedded.stop(self.folder / "sidestream")
        self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_config(self) -> None:
        options: dict[str, object] = {
            "addons_path": ",".join(str(path) for path in self._addon_paths),
            "data_dir": self.folder / "data",
            "db_host": "127.0.0.1",
            "db_port": self.postgres.port,
            "db_user": "odoo",
            "http_interface": "127.0.0.1",
            "max_cron_threads": 0,
            "list_db": False,
            "dbfilter": f"^{DATABASE}$",
            "without_demo": True,
            **self._options,
        }
        ours = {"data_dir": self.folder / "sidestream", "user": self.user, **self._settings}
        lines = ["[options]", *(f"{name} = {value}" for name, value in options.items())]
        lines += ["", "[sidestream]", *(f"{name} = {value}" for name, value in ours.items())]
        self.config.write_text("\n".join(lines) + "\n")

    def _own(self) -> None:
        who = self.account
        if who is None:
            return
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, who.uid, who.gid)


def _base(modules: Sequence[str], *, demo_data: bool) -> Path:
    """Return the folder of a stopped cluster with ``modules``; create it if it is missing."""
    if os.environ.get("ODOO_COMMAND"):
        version = subprocess.run([*odoo_command(), "--version"], capture_output=True, text=True, check=True).stdout
    else:
        version = str((TOOLS / "odoo" / ".complete").stat().st_mtime_ns)
    recipe = json.dumps([odoo_command(), version, sorted(modules), demo_data, os.geteuid()])
    base = TOOLS / "odoo-base" / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    base.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{base}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be creating it
        if not base.exists():
            _make_base(base, modules, demo_data=demo_data)
    return base


def _make_base(base: Path, modules: Sequence[str], *, demo_data: bool) -> None:
    world = OdooWorld((), fsync=False)
    try:
        world.postgres.start()
        with psycopg.connect(world.postgres.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE odoo LOGIN CREATEDB")
            connection.execute(f"CREATE DATABASE {DATABASE} OWNER odoo TEMPLATE template0")
        world.prepare(without_demo=not demo_data)
        world.run_odoo("-i", ",".join(modules), *(["--with-demo"] if demo_data else []))
        world.keep_in(base)
    finally:
        world.close()


@contextmanager
def _installed(base: Path, addons: Sequence[str], paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the folder of ``base`` with these addons; create it if missing or outdated."""
    name = hashlib.sha256(json.dumps([addons, [str(path) for path in paths]]).encode()).hexdigest()[:8]
    kept = base.with_name(f"{base.name}-{name}")
    state = _state(addons, paths)
    with Path(f"{kept}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = Path(f"{kept}.of")
        if not kept.exists() or not mark.exists() or mark.read_text() != state:
            mark.unlink(missing_ok=True)
            world = OdooWorld((), addon_paths=[path for path in paths if path != ADDONS], fsync=False)
            try:
                world.begin_with(base)
                world.install(*addons)
                world.keep_in(kept)
            finally:
                world.close()
            mark.write_text(state)
        fcntl.flock(lock, fcntl.LOCK_SH)  # it must not be recreated while it is copied
        yield kept


def _state(addons: Sequence[str], paths: Sequence[Path]) -> str:
    """Return a digest of all files of the addons and the engine."""
    folders = [ROOT / "src" / "sidestream", *(path / addon for addon in addons for path in paths)]
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy a folder and its owners, sharing blocks if the file system supports that."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)


def _run(command: Sequence[str], world: OdooWorld) -> str:
    who = world.account
    began = time.monotonic()
    done = subprocess.run(
        command,
        env=world.environment(),
        cwd=world.folder,
        user=None if who is None else who.uid,
        group=None if who is None else who.gid,
        extra_groups=None if who is None else who.groups,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=INSTALL_PATIENCE,
        check=False,
        text=True,
        errors="replace",
    )
    if done.returncode != 0 or " CRITICAL " in done.stdout:
        last = "\n".join(done.stdout.splitlines()[-25:])
        raise ServerFailed(f"Odoo failed after {time.monotonic() - began:.0f} s ({shlex.join(command)}):\n{last}")
    return done.stdout
