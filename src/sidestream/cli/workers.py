"""``sidestream workers``: who is alive, and what each runs."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import print_json, print_line, print_table


def workers(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List the workers that announced themselves to Redis, and what each runs."""
    from sidestream.admin.jobs import announced_workers

    found = [_facts(*one) for one in announced_workers(options_of(context).settings())]
    if as_json:
        print_json({"workers": found})
        return
    if not found:
        print_line("No worker has announced itself; start one with 'sidestream worker'.")
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


def _facts(name: str, lanes: tuple[str, ...], info: str, until_ms: int) -> dict[str, Any]:
    try:
        told = json.loads(info)
    except ValueError:
        told = {}
    if not isinstance(told, dict):
        told = {}
    now = time.time()
    alive = until_ms > now * 1000
    state = "draining" if told.get("draining") else "quiet" if told.get("quiet") else "working"
    return {
        "worker": name,
        "state": state if alive else "silent",
        "queues": sorted({lane.partition(":")[2] for lane in lanes}),
        "host": told.get("host"),
        "pid": told.get("pid"),
        "children": told.get("children"),
        "actions": told.get("actions", []),
        "jobs": [
            {
                "job": job.get("job"),
                "action": job.get("action"),
                "since": datetime.fromtimestamp(job.get("since", now), UTC),
                "seconds": round(max(0.0, now - job.get("since", now)), 1),
            }
            for job in told.get("jobs", [])
        ],
    }
