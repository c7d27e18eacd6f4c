"""``make lock``: keep the pins in requirements/ current in the manner of Dependabot.

Without arguments every package is upgraded at once; names upgrade these packages alone, and ``--each`` upgrades every
outdated package by itself. What changed is shown, and the unit tests decide: with a lock that fails them, the files are
as they were before. ``--outdated`` only shows what could be upgraded.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".venv" / "bin" / "uv"
LOCKS: Mapping[str, Sequence[str]] = {
    "requirements/dev.lock": ("pyproject.toml", "--extra", "dev", "--universal"),
    "requirements/odoo.lock": ("requirements/odoo.in",),
}
"""Each lock, and what it is resolved from."""
OPTIONS = (
    *("--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
    *("--no-header", "--no-annotate", "--quiet"),
)
ALL = ("--upgrade",)

Pins = dict[str, str]
Compile = Callable[[str, Sequence[str], Path], None]
"""Resolve a lock, with these options of uv, into a file that may hold the present pins."""


def pins(text: str) -> Pins:
    """Return the version of each package in a lock; several, where markers choose, are joined by a slash."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", text, re.MULTILINE):
        found.setdefault(name.lower(), []).append(version)
    return {name: "/".join(versions) for name, versions in found.items()}


def changes(before: Pins, after: Pins) -> list[str]:
    """Return one line for each package that was upgraded, added or removed."""
    return [
        f"{name} {before.get(name, '(new)')} -> {after.get(name, '(removed)')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


class Locks:
    """The lock files below a folder, how they are resolved, and whether a state of them is good."""

    def __init__(self, root: Path, resolve: Compile, passes: Callable[[], bool]) -> None:
        """``passes`` installs the locks and runs the tests."""
        self._root = root
        self._resolve = resolve
        self._passes = passes

    def texts(self) -> dict[str, str]:
        """Return what the lock files hold."""
        return {name: (self._root / name).read_text() for name in LOCKS}

    def outdated(self) -> dict[str, list[str]]:
        """Return for each lock what an upgrade of everything would change."""
        found = {}
        for name, text in self.texts().items():
            with tempfile.TemporaryDirectory() as folder:
                draft = Path(folder) / "draft.lock"
                draft.write_text(text)
                self._resolve(name, ALL, draft)
                found[name] = changes(pins(text), pins(draft.read_text()))
        return found

    def upgrade(self, options: Sequence[str]) -> bool:
        """Upgrade, show what changed, and keep it if the tests pass; otherwise restore the files and return False."""
        before = self.texts()
        try:
            for name in LOCKS:
                self._resolve(name, options, self._root / name)
            after = self.texts()
            changed = {name: changes(pins(before[name]), pins(after[name])) for name in LOCKS}
            for name, lines in changed.items():
                for line in lines:
                    print(f"lock: {name}: {line}")
            if not any(changed.values()):
                print("lock: nothing to upgrade")
                return True
            if self._passes():
                return True
        except BaseException:
            self._restore(before)
            raise
        self._restore(before)
        print("lock: the tests fail with these versions; the files are as they were before", file=sys.stderr)
        return False

    def upgrade_each(self) -> list[str]:
        """Upgrade every outdated package by itself; return those that fail the tests."""
        candidates = {line.split()[0] for lines in self.outdated().values() for line in lines}
        return [name for name in sorted(candidates) if not self.upgrade(["--upgrade-package", name])]

    def _restore(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            (self._root / name).write_text(text)


def resolve(lock: str, options: Sequence[str], output: Path) -> None:
    """Let uv resolve a lock."""
    command = [str(UV), "pip", "compile", *LOCKS[lock], *OPTIONS, *options, "--output-file", str(output)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def passes() -> bool:
    """Install requirements/dev.lock and run the unit tests."""
    return subprocess.run(["make", "test-unit"], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Carry out the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="make lock", description="Upgrade the pinned packages.")
    parser.add_argument("packages", nargs="*", help="upgrade only these")
    parser.add_argument("--each", action="store_true", help="upgrade every outdated package by itself")
    parser.add_argument("--outdated", action="store_true", help="only show what could be upgraded")
    asked = parser.parse_args()
    locks = Locks(ROOT, resolve, passes)
    try:
        if asked.outdated:
            for name, lines in locks.outdated().items():
                print("\n".join(f"lock: {name}: {line}" for line in lines) or f"lock: {name}: nothing to upgrade")
            return 0
        if asked.each:
            bad = locks.upgrade_each()
            if bad:
                print(f"lock: not upgraded, because the tests fail with them: {', '.join(bad)}", file=sys.stderr)
            good = not bad
        else:
            good = locks.upgrade([part for name in asked.packages for part in ("--upgrade-package", name)] or ALL)
    except subprocess.CalledProcessError as error:
        print(f"lock: uv could not resolve the packages (exit code {error.returncode}); see above", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
