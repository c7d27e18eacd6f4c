"""Print results: tables or JSON on stdout, one sentence on stderr, and an exit code.

Exit codes: 0 done; 1 not done (no such job, a state that does not allow it, a fault); 2 wrong input or setting;
3 PostgreSQL or Redis is unavailable or unsuitable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import typer

from sidestream.errors import BrokerError, InvalidJob, SettingsError, SidestreamError, StoreError
from sidestream.redaction import CONTROL, printable, redact

EXIT_FAULT = 1
EXIT_INPUT = 2
EXIT_SERVER = 3
_PIPE_WIDTH = 10_000  # wide enough for any row: a pipe gets one line per row


def exit_code(error: SidestreamError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, InvalidJob | SettingsError):
        return EXIT_INPUT
    if isinstance(error, BrokerError | StoreError):
        return EXIT_SERVER
    return EXIT_FAULT


def fail(sentence: str) -> NoReturn:
    """End the command with code 1 and a sentence that says why it did nothing."""
    complain(sentence)
    raise typer.Exit(EXIT_FAULT)


def complain(sentence: str) -> None:
    """Print one sentence on stderr, on one line."""
    typer.echo(" ".join(show(sentence).split()), err=True)


def print_json(value: object) -> None:
    """Print ``value`` as one line of JSON without secrets; times are ISO 8601 in UTC."""
    text = json.dumps(
        redact(value),
        ensure_ascii=False,
        default=lambda one: one.isoformat() if isinstance(one, datetime) else str(one),
    )
    typer.echo(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))  # JSON itself escapes only the first 32


def print_line(text: str) -> None:
    """Print one line for people."""
    typer.echo(show(text))


def answer(facts: object, sentence: str, *, as_json: bool) -> None:
    """Print what a command did or found: ``facts`` as one line of JSON, or a sentence for people."""
    if as_json:
        print_json(facts)
    else:
        print_line(sentence)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people; a narrow terminal wraps cells, a pipe does not."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(cell)) for cell in row))  # Text: users' texts are never read as markup
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print one fact per line, without empty ones."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if value not in (None, "", 0, [], {}):
            print_line(f"{name:<{width}}  {show(value)}")


def show(value: object) -> str:
    """Return the text of a cell: nothing for None, and a time to the second in UTC.

    Secrets and control characters are removed, because errors and arguments hold texts of users and other servers.
    """
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(redact(value)))
