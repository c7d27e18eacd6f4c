"""``sidestream bench``: measure the engine on your servers."""

from __future__ import annotations

import signal
import sys
import time
from typing import Annotated

import typer

from sidestream.cli.options import AsJson, Children, number, options_of
from sidestream.cli.output import complain, print_json, print_line, print_table

LEAST = 100
MOST = 100_000


def bench(
    context: typer.Context,
    *,
    jobs: Annotated[int, number(LEAST, MOST, "Number of direct jobs; a fifth as many transactional ones.")] = 10_000,
    children: Children = None,
    anyway: bool = typer.Option(False, "--anyway", help="Measure even while real jobs are ready or running."),
    as_json: AsJson = False,
) -> None:
    """Measure the engine on your Redis and PostgreSQL in under a minute, and remove everything again."""
    from sidestream.bench.run import run_bench

    settings = options_of(context).settings(children=children)
    # As Ctrl-C does: clean up, then end.
    before = signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    started = time.monotonic()
    try:
        found = run_bench(settings, size=jobs, anyway=anyway, say=_say)
    finally:
        signal.signal(signal.SIGTERM, before)
    seconds = time.monotonic() - started
    if as_json:
        rows = [row._asdict() | {"value": _round(row.value), "p99": _round(row.p99)} for row in found.rows]
        print_json({"benchmark": "bench", "servers": found.servers, "rows": rows, "seconds": round(seconds, 1)})
        return
    for described in found.servers.values():
        print_line(described)
    print_table(
        ("WHAT", "MEDIAN", "P99", "UNIT", "OVER"),
        [(row.what, _show(row.value), _show(row.p99), row.unit, row.note) for row in found.rows],
    )
    print_line(f"No job ran twice. Everything is removed again. {seconds:.0f} s.")


def _say(what: str) -> None:
    if sys.stderr.isatty():
        complain(f"Measuring: {what} ...")


def _show(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
