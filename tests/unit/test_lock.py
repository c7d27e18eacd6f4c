"""``make lock`` upgrades, shows, keeps and restores pins."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

NEWEST = {"alpha": "2.0", "beta": "3.1", "gamma": "1.0"}
BEFORE = (
    "alpha==1.0 \\\n    --hash=sha256:aa\nbeta==3.0 ; python_version < '3.13'\nbeta==3.0.1 ; python_version >= '3.13'\n"
)


class Registry:
    """Resolves as uv would, with these newest versions."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []

    def __call__(self, lock: str, options: Sequence[str], output: Path) -> None:
        self.asked.append(options)
        names = NEWEST if "--upgrade" in options else {name: NEWEST[name] for name in options if name in NEWEST}
        lines = [line for line in output.read_text().splitlines() if line.split("==")[0] not in names]
        output.write_text("\n".join([*lines, *(f"{name}=={version}" for name, version in names.items())]) + "\n")


@pytest.fixture
def lock() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "lock.py"))


@pytest.fixture
def root(tmp_path: Path, lock: dict[str, Any]) -> Path:
    for name in lock["LOCKS"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(BEFORE)
    return tmp_path


def test_changes_name_what_was_upgraded_added_and_removed(lock: dict[str, Any]) -> None:
    before = lock["pins"](BEFORE)
    assert before == {"alpha": "1.0", "beta": "3.0/3.0.1"}
    assert lock["changes"](before, {"alpha": "2.0", "gamma": "1"}) == [
        "alpha 1.0 -> 2.0",
        "beta 3.0/3.0.1 -> (removed)",
        "gamma (new) -> 1",
    ]


def test_an_upgrade_that_passes_the_tests_is_kept(
    lock: dict[str, Any], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = lock["Locks"](root, Registry(), lambda: True)
    assert locks.upgrade(["--upgrade-package", "alpha"])
    assert lock["pins"]((root / "requirements/dev.lock").read_text()) == {"alpha": "2.0", "beta": "3.0/3.0.1"}
    assert "requirements/dev.lock: alpha 1.0 -> 2.0" in capsys.readouterr().out


def test_an_upgrade_that_fails_the_tests_changes_nothing(lock: dict[str, Any], root: Path) -> None:
    assert not lock["Locks"](root, Registry(), lambda: False).upgrade(lock["ALL"])
    assert (root / "requirements/dev.lock").read_text() == BEFORE


def test_an_interrupted_upgrade_changes_nothing(lock: dict[str, Any], root: Path) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lock["Locks"](root, Registry(), interrupted).upgrade(lock["ALL"])
    assert (root / "requirements/odoo.lock").read_text() == BEFORE


def test_each_package_is_judged_by_itself(lock: dict[str, Any], root: Path) -> None:
    def passes() -> bool:
        return "alpha==2.0" not in (root / "requirements/dev.lock").read_text()

    locks = lock["Locks"](root, Registry(), passes)
    assert locks.upgrade_each() == ["alpha"]
    assert lock["pins"]((root / "requirements/dev.lock").read_text()) == {"alpha": "1.0", "beta": "3.1", "gamma": "1.0"}


def test_what_is_outdated_is_shown_without_a_change(lock: dict[str, Any], root: Path) -> None:
    locks = lock["Locks"](root, Registry(), lambda: pytest.fail("nothing is tested"))
    assert "alpha 1.0 -> 2.0" in locks.outdated()["requirements/odoo.lock"]
    assert (root / "requirements/odoo.lock").read_text() == BEFORE
