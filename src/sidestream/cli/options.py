"""What stands before a command's name, and the settings that follow from it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sidestream.executors.python.actions import Actions
    from sidestream.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
"""The option that every command has."""


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """The global options as given; None where the environment or the settings file decides."""

    database_url: str | None = None
    redis_url: str | None = None
    app: str | None = None
    config: str | None = None
    odoo_config: str | None = None
    odoo_database: str | None = None

    def settings(self, **of_the_command: object) -> Settings:
        """Return the settings, with what the command's own options say (None: not given).

        Raises :class:`~sidestream.errors.SettingsError` when one is wrong.
        """
        from sidestream.settings import Settings

        if self.config is not None:
            os.environ["SIDESTREAM_CONFIG"] = self.config  # where Settings looks, and what child processes inherit
        given: dict[str, Any] = {
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "app": self.app,
            "odoo_config": self.odoo_config,
            "odoo_database": self.odoo_database,
        }
        given |= of_the_command
        return Settings(**{name: value for name, value in given.items() if value is not None})


def options_of(context: typer.Context) -> GlobalOptions:
    """Return the global options of the running command."""
    found = context.obj
    return found if isinstance(found, GlobalOptions) else GlobalOptions()


def actions_of(settings: Settings) -> Actions | None:
    """Import the application that the settings name, looking in the current folder too; None when they name none."""
    if settings.app is None:
        return None
    from sidestream.executors.python.actions import load_actions

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the script's own folder stands there instead, unlike with python -m
    return load_actions(settings.app)
