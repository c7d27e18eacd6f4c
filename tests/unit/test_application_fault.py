"""Errors while an application is loaded: whose fault they are, and where."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sidestream.errors import ApplicationError, SettingsError
from sidestream.executors.application_fault import is_raised_in
from sidestream.executors.python.actions import load_actions


def raised(run: Callable[[], object]) -> BaseException:
    try:
        run()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def module(name: str, code: str) -> ModuleType:
    made = ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), made.__dict__)
    return made


def test_an_error_raised_in_a_package_is_recognized() -> None:
    addon = module("odoo.addons.shop.models", "def setup(): return {}['missing']")
    other = module("odoo.addonsless", "def setup(): return {}['missing']")
    assert is_raised_in("odoo.addons", raised(addon.setup))
    assert not is_raised_in("odoo.addons", raised(other.setup))
    assert is_raised_in("odoo.addons", raised(lambda: compile("def (:", "shop.py", "exec")))


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        return f"{name}:actions"

    return write


def test_the_traceback_begins_in_the_user_s_module(app: Callable[[str, str], str], tmp_path: Path) -> None:
    error = raised(lambda: load_actions(app("faulty_app", "def deep():\n    raise ValueError('no price')\ndeep()\n")))
    assert isinstance(error, ApplicationError)
    assert str(error) == (
        "The application 'faulty_app:actions' cannot be loaded, which is a fault in its own code and not in "
        f"Sidestream: ValueError: no price ({tmp_path}/faulty_app.py, line 2)."
    )
    assert error.__cause__ is not None
    assert [frame.name for frame in traceback.extract_tb(error.__cause__.__traceback__)] == ["<module>", "deep"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_app:actions", "cannot be imported: No module named 'no_such_app'"),
        ("empty_app:actions", "has no attribute 'actions'"),
        ("empty_app", "has no attribute"),
    ],
)
def test_a_wrong_name_is_not_blamed_on_the_user_s_code(app: Callable[[str, str], str], path: str, said: str) -> None:
    app("empty_app", "")
    error = raised(lambda: load_actions(path))
    assert type(error) is SettingsError
    assert said in str(error)
