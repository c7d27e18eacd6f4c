"""One Odoo with Sidestream and OCA's queue_job in the same database, and every process that the measures need.

One database, so that all sides load the same registry, call the same methods and write the same tables. Both workers
run all the time; the one that is not measured is idle.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
import redis
from stamps import Stamps

sys.path.insert(1, str(Path(__file__).resolve().parents[2]))  # tests.support

from tests.support.odoo import DATABASE, TOOLS, OdooServer, OdooWorld, odoo_command

HERE = Path(__file__).resolve().parent
OCA = TOOLS / "peers" / "oca"
OCA_WHEEL = "odoo-addon-queue-job==19.*"
PROCESSES = 2
STREAM = "bench:bare"
"""As in ``standalone.py``, which only an Odoo can import."""


def oca_addons() -> Path:
    """Return the folder of OCA's addons; pip downloads the wheel by its name when it is not there."""
    addons = OCA / "odoo" / "addons"
    if not (addons / "queue_job" / "__manifest__.py").exists():
        OCA.mkdir(parents=True, exist_ok=True)
        pip = [odoo_command()[0], "-m", "pip", "download", "--disable-pip-version-check", "-q", "--no-deps"]
        subprocess.run([*pip, "-d", str(OCA), OCA_WHEEL], check=True)
        with zipfile.ZipFile(next(OCA.glob("odoo_addon_queue_job-*.whl"))) as wheel:
            wheel.extractall(OCA)
    return addons


def oca_version() -> str:
    """Return the version of the wheel."""
    return next(OCA.glob("odoo_addon_queue_job-*.dist-info")).name.split("-")[1].removesuffix(".dist")


class Ledger(Stamps):
    """The stamps of jobs that are numbered by the ids of their records."""

    def runs(self, number: int) -> int:
        """How often job ``number`` ran."""
        return int(self._map[number])


class BenchWorld(OdooWorld):
    """A world whose processes know the ledger."""

    def environment(self) -> dict[str, str]:
        """See :meth:`OdooWorld.environment`."""
        # Not the folder of the benchmarks: a folder "odoo" on Python's path would become part of Odoo's package.
        ours = {"BENCH_STAMPS": str(self.folder / "stamps"), "PYTHONPATH": str(self.folder / "lib")}
        return super().environment() | ours


class OcaServer(OdooServer):
    """Odoo as OCA wants it: prefork, with the job runner in the server."""

    kind = "oca"

    def command(self) -> Sequence[str]:
        """See :meth:`Server.command`."""
        return [*super().command(), "--load=base,web,queue_job"]

    def environment(self) -> dict[str, str]:
        """See :meth:`Server.environment`."""
        return super().environment() | {
            "ODOO_QUEUE_JOB_CHANNELS": f"root:{PROCESSES}",
            "ODOO_QUEUE_JOB_PORT": str(self.port),
        }


class StandAlone:
    """A process of ``standalone.py``."""

    def __init__(self, world: OdooWorld, name: str) -> None:
        who = world.account
        with (world.folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [odoo_command()[0], str(HERE / "standalone.py"), str(world.config), DATABASE],
                env=world.environment(),
                cwd=world.folder,
                user=None if who is None else who.uid,
                group=None if who is None else who.gid,
                extra_groups=None if who is None else who.groups,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._log = Path(log.name)

    def send(self, do: str, **order: Any) -> None:
        """Tell it to do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to the oldest order, as soon as it comes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A stand-alone Odoo ended: {self._log.read_text(errors='replace')[-3000:]}")
        return json.loads(line)

    def ask(self, do: str, **order: Any) -> Any:
        """Tell it to do something and wait for the answer."""
        self.send(do, **order)
        return self.answer()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Shop:
    """The servers, the two workers, the user and the loops."""

    def __init__(self, light: int, heavy: int) -> None:
        self._sizes = (light, heavy)
        self._conflicts = 0
        options = {"log_level": "warn"}
        # The peer and the loop are not niced; neither are our children here.
        settings = {"nice": 0, "log_level": "info"}  # it tells of conflicts
        addon_paths = (HERE / "addons", oca_addons())
        addons = ("sidestream", "bench_job", "queue_job")
        self.world = BenchWorld(addons, addon_paths=addon_paths, settings=settings, options=options, keep=False)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            world = self.world
            stack.callback(world.close)
            (world.folder / "lib").mkdir()
            shutil.copy(HERE.parent / "stamps.py", world.folder / "lib")
            self.stamps = Ledger.create(world.folder / "stamps", 4 * sum(self._sizes) + 10_000)
            world.start()
            self.look = stack.enter_context(world.connect())
            self.redis = stack.enter_context(redis.Redis.from_url(world.redis_url()))
            self.user, *self.loops = [self.stand_alone(stack, f"alone{number}") for number in range(PROCESSES + 1)]
            self.light, self.heavy = self.user.ask("make", light=self._sizes[0], heavy=self._sizes[1])
            self.oca = OcaServer(world, PROCESSES)
            stack.callback(self.oca.close)
            self.oca.start()
            self.worker = world.work("--children", str(PROCESSES))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def stand_alone(self, stack: ExitStack, name: str) -> StandAlone:
        """Return a stand-alone Odoo that has loaded its registry; it ends with ``stack``."""
        alone = StandAlone(self.world, name)
        stack.callback(alone.close)
        if alone.answer() != "ready":
            raise RuntimeError("A stand-alone Odoo did not begin with its word.")
        return alone

    def begin_bare_path(self) -> None:
        """Make what the bare path of the latency goes over: an empty table, an empty stream with its group."""
        self.user.ask("begin_bare_path")
        self.redis.delete(STREAM)
        self.redis.xgroup_create(STREAM, STREAM, mkstream=True)

    def new_conflicts(self, words: str) -> int:
        """Return how many lines of the worker's log have these words since this was last asked."""
        before, self._conflicts = self._conflicts, self.world.worker_log().count(words)
        return self._conflicts - before

    def end_all_but_worker(self) -> None:
        """End what else has Odoo loaded, so that a page that is shared is shared with the worker's own only."""
        self.oca.close()
        for alone in (self.user, *self.loops):
            alone.close()

    def children(self) -> list[psutil.Process]:
        """Return the processes in which our jobs run: the zygote's children."""
        return [child for zygote in psutil.Process(self.worker.pid).children() for child in zygote.children()]

    def check(self) -> None:
        """Raise :class:`RuntimeError` when a worker ended by itself."""
        if self.worker.poll() is not None:
            raise RuntimeError(f"The worker ended by itself: {self.world.worker_log()[-3000:]}")
        if not self.oca.alive:
            raise RuntimeError(f"OCA's server ended by itself: {self.oca.log.read_text(errors='replace')[-3000:]}")

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU that everybody used up so far."""
        info: dict[str, Any] = self.redis.info("cpu")
        supervisor = psutil.Process(self.worker.pid)
        own = supervisor.cpu_times()
        return {
            "postgres": _family(self.world.postgres.pid),
            "redis": info["used_cpu_sys"] + info["used_cpu_user"],
            "supervisor": own.user + own.system,
            "children": sum(_family(zygote.pid) for zygote in supervisor.children()),
            "oca": _family(self.oca.pid),
            "loops": sum(_family(loop.process.pid) for loop in self.loops),
        }

    def versions(self) -> Mapping[str, str]:
        """Return what to print about the servers."""
        shown = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        found = [f"{name} {self.look.execute(f'SHOW {name}').fetchone()[0]}" for name in shown]  # type: ignore[index]
        (modules,) = self.look.execute("SELECT count(*) FROM ir_module_module WHERE state = 'installed'").fetchone()  # type: ignore[misc]
        info: dict[str, Any] = self.redis.info("server")
        return {
            "postgresql": ", ".join(found),
            "redis server": f"embedded Valkey {info.get('valkey_version', info['redis_version'])}",
            "odoo": f"19, one database with {modules} modules and demo data for all sides",
            "sidestream": f"1 supervisor, {PROCESSES} children, lease 15 s, nice 0 as everybody here",
            "oca": f"queue_job {oca_version()}, prefork, {PROCESSES} HTTP workers, channels root:{PROCESSES}",
        }


def _family(pid: int) -> float:
    """Return the seconds of CPU of a process, of what it started, and of what it started and reaped."""
    parent = psutil.Process(pid)
    reaped = parent.cpu_times()
    total = reaped.children_user + reaped.children_system
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)
