"""``sidestream bench``: how fast the engine is on the servers that the settings name."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import print_json, print_line, print_table


def bench(
    context: typer.Context,
    *,
    jobs: Annotated[int, typer.Option(min=10, max=1_000_000, help="Empty jobs, at most.")] = 10_000,
    children: Annotated[int | None, typer.Option(help="Child processes (SIDESTREAM_CHILDREN).")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure round trips, enqueueing, idle latency and empty jobs a second on your servers; leaves nothing behind."""
    from sidestream.wiring import store_url
    from sidestream.wiring_bench import run

    settings = options_of(context).settings(children=children)
    before = signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # so that the keys are erased
    try:
        figures = run(settings, jobs)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        print_json({"figures": [one._asdict() for one in figures]})
        return
    print_table(
        ("WHAT", "MEDIAN", "P99", "UNIT"),
        [(one.what, _number(one.value), "" if one.p99 is None else _number(one.p99), one.unit) for one in figures],
    )
    if store_url(settings) is None:
        print_line("No database is named, so PostgreSQL is left out; give --database-url to have it measured.")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
