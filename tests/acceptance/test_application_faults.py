"""A fault in the user's module ends the worker at the start, with the user's traceback and one sentence."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sidestream.broker.redis.broker import RedisBroker
from sidestream.broker.redis.inspect import RedisInspector
from tests.acceptance.conftest import Run
from tests.acceptance.rig import COMMAND, Rig

HEAD = "from sidestream import Actions\nactions = Actions()\n"
BROKEN = {
    "a name error": ("price = undefined_name\n", "NameError: name 'undefined_name' is not defined", "line 3"),
    "a missing dependency": ("import not_installed_here\n", "No module named 'not_installed_here'", "line 3"),
    "a syntax error": ("def (:\n", "SyntaxError", "line 3"),
    "an exit": ("raise SystemExit('no licence')\n", "SystemExit: no licence", "line 3"),
    "a wrong declaration": ("actions.action('a', retry=3)(print)\n", "retry=3 of action 'a'", "line 3"),
}


def start(rig: Rig, app: str) -> subprocess.CompletedProcess[str]:
    """Start a worker that is to end by itself."""
    (rig.folder / "broken.py").write_text(HEAD + app)
    variables = {**rig.variables, "SIDESTREAM_APP": "broken:actions"}
    return subprocess.run(
        [COMMAND, "worker", "run"],
        cwd=rig.folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("app", BROKEN.values(), ids=BROKEN)
def test_a_fault_in_the_users_module_ends_the_worker_with_his_traceback(rig: Rig, app: tuple[str, str, str]) -> None:
    code, said, where = app
    ended = start(rig, code)
    assert ended.returncode == 2, ended.stderr
    *_, sentence = ended.stderr.splitlines()
    assert sentence.startswith(
        "The application 'broken:actions' cannot be loaded, which is a fault in its own code and not in Sidestream: "
    )
    assert said in sentence
    assert f"{rig.folder}/broken.py" in sentence
    assert where in sentence
    assert "zygote.py" not in ended.stderr, "the traceback is to begin with the user's code"
    assert "This is a fault in Sidestream" not in ended.stderr
    assert " serves " not in ended.stderr


def test_a_worker_whose_application_cannot_be_loaded_announces_nothing(rig: Rig) -> None:
    assert start(rig, "1 / 0\n").returncode == 2
    broker = RedisBroker(rig.settings.redis_url or "")
    try:
        assert RedisInspector(broker.connection).workers() == ()
    finally:
        broker.close()


def test_a_module_that_ends_its_process_ends_the_worker_after_three_tries(rig: Rig) -> None:
    ended = start(rig, "import os\nos._exit(3)\n")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        "The process that loads the application ended 3 times in a row before it was ready, most likely because of "
        "the application's own code; see what it printed last."
    )


def test_a_command_that_loads_the_module_blames_it_too(ready: Run, tmp_path: Path) -> None:
    (tmp_path / "broken_too.py").write_text(f"{HEAD}1 / 0\n")
    done = ready("--app", "broken_too:actions", "enqueue", "a")
    assert done.returncode == 2, done.stderr
    first, *_, sentence = done.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert f'File "{os.path.realpath(tmp_path)}/broken_too.py", line 3' in done.stderr
    assert "a fault in its own code and not in Sidestream: ZeroDivisionError: division by zero" in sentence
