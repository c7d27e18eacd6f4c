"""Write docs/reference/settings.md from the settings themselves; ``--check`` fails when it is not current."""

from __future__ import annotations

import sys
from pathlib import Path

from sidestream.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"


def page() -> str:
    """Return the page."""
    lines = [
        "# Settings",
        "",
        "Made by `scripts/settings_reference.py`. A keyword given in code wins over the environment, it over the",
        "file, the file over the default. The file is the one that `SIDESTREAM_CONFIG` or `--config` names, else",
        "`sidestream.toml` in the current folder (TOML, the names below in lower case); with `odoo_config` it is the",
        "section `[sidestream]` of that file. A `SIDESTREAM_` variable that is no setting is an error, but for those",
        "that Kubernetes sets for a service whose name begins with `sidestream`.",
        "",
        "| Variable | Meaning | Default |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default: object = "made for the user" if field.default_factory else field.default
        empty: dict[object, str] = {None: "none", (): "none", ("default",): "default"}
        shown = empty.get(default, default)
        lines.append(f"| `SIDESTREAM_{name.upper()}` | {field.description} | {shown} |")
    return "\n".join(lines) + "\n"


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
