"""Read PostgreSQL's address and the section ``[sidestream]`` from Odoo's configuration file.

This module does not import odoo, because the supervisor and the command line read the file too. See
https://www.odoo.com/documentation/19.0/developer/reference/cli.html#configuration-file
"""

from __future__ import annotations

from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from typing import Any

from sidestream.errors import SettingsError

SECTION = "sidestream"
"""Section of that file that may hold our settings, each by its name."""
_NONE = ("", "False", "None")


def settings_section(path: Path) -> dict[str, Any]:
    """Return the section ``[sidestream]``; raise SettingsError if the file is unreadable."""
    parser = _parse(path)
    return dict(parser[SECTION]) if parser.has_section(SECTION) else {}


def database_parameters(path: Path, database: str) -> dict[str, str]:
    """Return libpq's parameters for ``database`` on the server that the file names."""
    parser = _parse(path)
    options = parser["options"] if parser.has_section("options") else {}
    found = {"dbname": database}
    for ours, theirs in (("host", "db_host"), ("port", "db_port"), ("user", "db_user"), ("password", "db_password"),
                         ("sslmode", "db_sslmode")):  # fmt: skip
        value = str(options.get(theirs, "")).strip()
        if value not in _NONE:
            found[ours] = value
    return found


def _parse(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        first = str(error).splitlines()[0]
        raise SettingsError(f"Odoo's configuration {path} cannot be read: {first}; correct odoo_config.") from error
    return parser
