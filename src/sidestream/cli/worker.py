"""``sidestream worker``: run a worker, list workers, or quiet those of this host."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sidestream.cli.options import AsJson, Children, options_of
from sidestream.cli.output import fail, print_json, print_line, print_table
from sidestream.errors import SettingsError

worker = typer.Typer(no_args_is_help=True, help="Run, list or quiet workers.")


@worker.command("run")
def worker_run(
    context: typer.Context,
    queues: str = typer.Option(None, help="Queues to serve, comma-separated (SIDESTREAM_QUEUES)."),
    children: Children = None,
    quiet_jobs: bool = typer.Option(
        False, "--quiet-jobs", help="Log no line for the end of a job (SIDESTREAM_QUIET_JOBS)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Write log lines as JSON (SIDESTREAM_LOG_FORMAT=json)."),
) -> None:
    """Run jobs until SIGTERM or Ctrl-C lets running jobs finish; a second signal returns them to the queue."""
    from sidestream.logs import set_up_logging
    from sidestream.wiring.worker import Worker

    settings = options_of(context).settings(
        queues=queues,
        children=children,
        log_format="json" if as_json else None,
        quiet_jobs=True if quiet_jobs else None,
    )
    set_up_logging(settings.log_level, settings.log_format, quiet_jobs=settings.quiet_jobs)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # where the user's own module most likely is; the zygote does the same
    while Worker(settings).run():
        pass  # its database was adopted: a new worker starts where this one ended


@worker.command("list")
def worker_list(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the workers that announced themselves to Redis, and the jobs that each runs."""
    from sidestream.admin.jobs import announced_workers
    from sidestream.wiring.client import build_broker

    settings = options_of(context).settings()
    with closing(build_broker(settings)) as broker:
        found = [_facts(*one) for one in announced_workers(settings, broker)]
    if as_json:
        print_json({"workers": found})
        return
    if not found:
        print_line("No worker has announced itself; start one with 'sidestream worker run'.")
        return
    print_table(
        ("WORKER", "STATE", "QUEUES", "CHILDREN", "RUNNING"),
        [
            (
                one["worker"],
                one["state"],
                ", ".join(one["queues"]),
                one["children"],
                ", ".join(f"{job['job']} {job['action']} for {job['seconds']:.0f} s" for job in one["jobs"]),
            )
            for one in found
        ],
    )


@worker.command("quiet")
def worker_quiet(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[WORKER]", help="Only this worker, as 'sidestream worker list' shows it.")
    ] = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Let the workers claim jobs again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the workers of this host finish their running jobs and claim no more, without stopping."""
    from sidestream.process import acting_as
    from sidestream.wiring.data_folder import owner_of
    from sidestream.worker.run_dir import living, set_quiet

    settings = options_of(context).settings()

    def ask() -> tuple[list[str], list[str]]:
        asked = [folder for folder in living(settings.data_dir) if name in (None, folder.name)]
        return [folder.name for folder in asked], [f.name for f in asked if set_quiet(f, quiet=not resume)]

    try:
        found, changed = acting_as(owner_of(settings), ask)
    except PermissionError as error:
        raise SettingsError(
            f"The workers of {settings.data_dir} belong to another user ({error.strerror}); run the command as that "
            "user, or as root."
        ) from error
    if not found:
        which = "no worker runs" if name is None else f"no worker {name!r:.80} runs"
        fail(f"On this host {which} with the data folder {settings.data_dir}; set data_dir as the workers have it.")
    if as_json:
        print_json({"workers": found, "changed": changed, "quiet": not resume})
        return
    does = "will claim jobs again" if resume else "will claim no more jobs"
    print_line(f"{len(changed)} worker{'' if len(changed) == 1 else 's'} {does} within a second.")
    if len(changed) < len(found):
        others = len(found) - len(changed)
        print_line(f"{others} {'was' if others == 1 else 'were'} {'working' if resume else 'quiet'} already.")


def _facts(name: str, lanes: tuple[str, ...], facts: dict[str, Any], until_ms: int) -> dict[str, Any]:
    now = time.time()
    alive = until_ms > now * 1000
    state = "draining" if facts.get("draining") else "quiet" if facts.get("quiet") else "working"
    return {
        "worker": name,
        "state": state if alive else "silent",
        "queues": sorted({lane.partition(":")[2] for lane in lanes}),
        "host": facts.get("host"),
        "pid": facts.get("pid"),
        "children": facts.get("children"),
        "actions": facts.get("actions", []),
        "jobs": [
            {
                "job": job.get("job"),
                "action": job.get("action"),
                "since": datetime.fromtimestamp(job.get("since", now), UTC),
                "seconds": round(max(0.0, now - job.get("since", now)), 1),
            }
            for job in (facts.get("jobs", []) if alive else [])
        ],
    }
