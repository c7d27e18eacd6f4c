"""Read the global options, and the options and arguments that several commands share."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from sidestream.errors import LONGEST_SNOOZE, InvalidJob, SettingsError
from sidestream.job.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from sidestream.executors.python.actions import Actions
    from sidestream.settings import Settings
    from sidestream.store.cursor import Cursor

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
"""The option that every command has."""
JobId = Annotated[str, typer.Argument(metavar="ID", help="Number of a job, or uuid of a direct job.")]
Note = Annotated[str | None, typer.Option(help="Reason that is shown with the rule.")]
NEGATIVE = {"ignore_unknown_options": True}
"""Context settings with which -1 is read as a number, and refused as one."""
LARGEST_ID = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Hold the global options as given; None where the environment or the settings file decides."""

    database_url: str | None = None
    redis_url: str | None = None
    app: str | None = None
    config: str | None = None
    odoo_config: str | None = None
    odoo_database: str | None = None

    def settings(self, **of_the_command: object) -> Settings:
        """Return the settings, with the values of the command's own options (None: not given).

        Raises :class:`~sidestream.errors.SettingsError` when one is wrong.
        """
        from sidestream.settings import Settings

        if self.config is not None:
            os.environ["SIDESTREAM_CONFIG"] = self.config  # where Settings looks, and what child processes inherit
        given = {**asdict(self), **of_the_command}
        del given["config"]
        return Settings(**{name: value for name, value in given.items() if value is not None})


def options_of(context: typer.Context) -> GlobalOptions:
    """Return the global options of the running command."""
    found = context.obj
    return found if isinstance(found, GlobalOptions) else GlobalOptions()


def actions_of(settings: Settings) -> Actions | None:
    """Import the application that the settings name, from the current folder too; return None when they name none."""
    if settings.app is None:
        return None
    from sidestream.executors.python.actions import load_actions

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a script's own folder is first on the path, unlike with python -m
    return load_actions(settings.app)


def parse_job_id(text: str) -> int | UUID:
    """Return a job's number or a direct job's uuid; raise :class:`~sidestream.errors.InvalidJob` for other texts."""
    if text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= LARGEST_ID:
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        raise InvalidJob(
            f"{text!r:.60} is not the id of a job; expected a positive number, as 'sidestream jobs' shows it, or the "
            "uuid of a direct job."
        ) from None


def cursor_of(context: typer.Context, settings: Settings | None = None) -> AbstractContextManager[Cursor]:
    """Open a cursor on the database of the settings; commit at the end of the block unless it raises."""
    from sidestream.wiring.client import store_cursor

    return store_cursor(settings or options_of(context).settings())


def number(least: float, most: float, about: str, argument: str | None = None) -> Any:
    """Return Typer's option, or the argument with this metavar, for a number of the type of ``least``."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if least <= (found := type(least)(text)) <= most:
                return found
        raise typer.BadParameter(f"{str(text)!r:.40}; expected {least} to {most}")

    if argument is not None:
        return typer.Argument(metavar=argument, parser=parse, help=about)
    return typer.Option(parser=parse, help=about)


def seconds(option: str, text: str, most: float = LONGEST_SNOOZE) -> float:
    """Return the duration that an option gives, in seconds; raise :class:`~sidestream.errors.SettingsError`."""
    try:
        found = parse_duration(text)
    except ValueError as error:
        raise SettingsError(f"{option} {text!r:.40} is wrong: {error}.") from None
    if not 0 <= found <= most:
        raise SettingsError(f"{option} {text!r:.40} is wrong: expected 0s to {format_duration(most)}.")
    return found


def who() -> str:
    """Return the account and the host, with which a change is signed."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a number without an account
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


Children = Annotated[int | None, number(1, 1024, "Number of child processes (SIDESTREAM_CHILDREN).")]
