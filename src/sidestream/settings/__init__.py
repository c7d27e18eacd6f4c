"""The settings of workers, clients and commands: keyword, environment variable, file."""

from sidestream.settings.settings import CONFIG_VARIABLE, Settings

__all__ = ["CONFIG_VARIABLE", "Settings"]
