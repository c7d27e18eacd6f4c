"""The command line prints foreign texts safely."""

from __future__ import annotations

import json

import pytest
import typer

from sidestream.cli import main
from sidestream.cli.output import complain, print_facts, print_json, print_line, print_table

ERROR = "\x1b]0;owned\x07\x9b31mBoom\r\u202e: password=hunter2\x7f"
SHOWN = "]0;owned31mBoom: password=***"


def test_control_characters_and_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(ERROR)
    complain(ERROR)
    print_facts({"error": ERROR})
    print_table(("ERROR",), [(ERROR,)])
    said = capsys.readouterr()
    assert said.out.split("\n") == [SHOWN, f"error  {SHOWN}", "ERROR                        ", SHOWN, ""]
    assert said.err == f"{SHOWN}\n"


def test_line_ends_and_tabs_stay(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("first\n\tsecond")
    assert capsys.readouterr().out == "first\n\tsecond\n"


def test_json_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"error": ERROR, "kwargs": {"api_key": "k", "n": 1}})
    said = capsys.readouterr().out
    assert not any(character in said for character in "\x1b\x07\x9b\x7f\u202e\r")
    assert json.loads(said) == {"error": ERROR.replace("hunter2\x7f", "***"), "kwargs": {"api_key": "***", "n": 1}}


def test_ctrl_c_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(interrupted)
    monkeypatch.setattr(main, "app", app)
    monkeypatch.setattr("sys.argv", ["sidestream"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 130
    assert "fault" not in capfd.readouterr().err
