"""Write each addon's README.md from its manifest and readme/ fragments, with the sections of OCA's generator.

OCA's own generator is not on PyPI. ``--check`` fails when a README is not current.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

ADDONS = Path(__file__).parents[1] / "addons"
SECTIONS = {
    "INSTALL": "Installation",
    "CONFIGURE": "Configuration",
    "USAGE": "Usage",
    "ROADMAP": "Known issues / Roadmap",
}
"""The fragments after DESCRIPTION, in OCA's order, and the headings that they get."""


def readme(addon: Path) -> str:
    """Return the addon's README."""
    manifest: dict[str, Any] = ast.literal_eval((addon / "__manifest__.py").read_text())
    fragments = {path.stem: path.read_text().strip() for path in (addon / "readme").glob("*.md")}
    chapters = {heading: fragments[name] for name, heading in SECTIONS.items() if name in fragments}
    site = manifest["website"]
    chapters["Bug tracker"] = f"Report bugs at <{site}/issues>. First check whether somebody has already reported them."
    people = [f"* {author.strip()}" for author in manifest["author"].split(",")]
    maintainers = [f"* [{name}](https://github.com/{name})" for name in manifest["maintainers"]]
    chapters["Credits"] = "\n".join(["### Authors", "", *people, "", "### Maintainers", "", *maintainers])
    contents = [f"- [{heading}](#{_anchor(heading)})" for heading in chapters]
    lines = [
        "<!-- Made by scripts/addon_readme.py from readme/ and __manifest__.py: edit those. -->",
        f"# {manifest['name']}",
        f"Development status: {manifest['development_status']}. License: {manifest['license']}.",
        fragments["DESCRIPTION"],
        "**Table of contents**\n\n" + "\n".join(contents),
        *(f"## {heading}\n\n{text}" for heading, text in chapters.items()),
    ]
    return "\n\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return "".join(one for one in heading.lower().replace(" ", "-") if one.isalnum() or one == "-")


def main() -> int:
    """Write the READMEs, or with ``--check`` compare them; the exit code is 1 when one is not current."""
    stale = []
    for manifest in sorted(ADDONS.glob("*/__manifest__.py")):
        page, text = manifest.parent / "README.md", readme(manifest.parent)
        if "--check" not in sys.argv:
            page.write_text(text)
        elif not page.exists() or page.read_text() != text:
            stale.append(f"addons/{page.parent.name}/README.md")
    if stale:
        print(f"{', '.join(stale)} is not current; run: python scripts/addon_readme.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
