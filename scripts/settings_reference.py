"""Write docs/reference/settings.md from the settings; ``--check`` fails when it is outdated."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from sidestream.job.durations import format_duration
from sidestream.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"


def page() -> str:
    """Return the page."""
    lines = [
        "# Settings",
        "",
        "Made by `scripts/settings_reference.py`. A keyword in code has priority over the environment variable, the",
        "variable over the settings file, and the file over the default. `SIDESTREAM_CONFIG` or `--config` names the",
        "file, else it is `sidestream.toml` in the current folder. It is TOML with the names below in lower case and",
        "without the prefix (`children = 4`). With `odoo_config`, it is the section `[sidestream]` of Odoo's file. An",
        "unknown `SIDESTREAM_` variable is an error, except those that Kubernetes sets for a service whose name begins",
        "with `sidestream`.",
        "",
        "A duration is a text such as `15s`, `200ms`, `2m`, `12h` or `30d`, or a number of seconds. A size is a text",
        "such as `512MB`, `1GB` or `1GiB`, or a number of bytes.",
        "",
        "| Variable | Meaning | Default |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `SIDESTREAM_{name.upper()}` | {field.description} | {_default(field)} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory:
        return "in the user's home"
    match field.default:
        case None | ():
            return "none"
        case ("default",):
            return "default"
        case bool() as yes:
            return str(yes).lower()
        case ByteSize() as size:
            return size.human_readable(separator="").replace(".0", "")
        case float() as seconds:
            return format_duration(seconds)
        case default:
            return str(default)


def main() -> int:
    """Write the page, or with ``--check`` compare it; the exit code is 1 when it is not current."""
    if "--check" in sys.argv:
        if PAGE.exists() and PAGE.read_text() == page():
            return 0
        print("docs/reference/settings.md is not current; run: python scripts/settings_reference.py", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
