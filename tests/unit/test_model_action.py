"""Declared methods of models, and the messages for wrong declarations."""

from __future__ import annotations

from typing import Any

import pytest

from sidestream.errors import ActionError, CommitRefused, InvalidName, SettingsError
from sidestream.executors.odoo.guarded_cursor import Guard, guarded_class
from sidestream.executors.odoo.model_action import ModelAction, collect, declared


class Base:
    """A model, and what extends it."""

    @ModelAction(queue="pdf").declare
    def print(self) -> str:
        return "base"

    def secret(self) -> None: ...


class Extended(Base):
    """An override needs no declaration of its own."""

    def print(self) -> str:
        return "extended"


def test_a_declaration_holds_for_overrides() -> None:
    action = declared(Extended, "print")
    assert action is not None
    assert action.queue == "pdf"
    assert declared(Extended, "secret") is None
    assert declared(Extended, "missing") is None


def test_actions_are_collected_by_model_and_method() -> None:
    assert set(collect({"sale.order": Extended, "res.partner": object})) == {"sale.order.print"}


def test_a_long_name_of_a_model_and_its_method_is_served() -> None:
    long = ".".join(["stock.rule"] * 20)
    assert set(collect({long: Extended})) == {f"{long}.print"}


def test_an_action_that_cannot_be_served_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sidestream.executors.odoo.model_action.tag", lambda name, size: name[:4].encode())
    models = {"x" * 300: Extended, "sale.order": Extended, "sale.line": Extended, "res.partner": Extended}
    assert set(collect(models)) == {"res.partner.print"}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "This worker does not serve an action",
        "This worker does not serve actions that have the same tag",
    ]
    assert "the same tag: sale.line.print and sale.order.print; rename one of them." in caplog.records[1].getMessage()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"commits": "often"}, "expected 'forbid' or 'relock'"),
        ({"commits": "relock", "three_step": True}, "its steps commit"),
        ({"run_as": "root"}, "xml id of a user"),
        ({"soft_limit": 0}, "seconds above 0"),
        ({"soft_limit": 10, "hard_limit": 5}, "hard_limit=5 of an action is not above its soft_limit=10"),
        ({"soft_limit": 5, "hard_limit": 5}, "raise hard_limit or lower soft_limit"),
        ({"queue": "no spaces"}, "queue name"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises((SettingsError, InvalidName), match=said):
        ModelAction(**options)


def test_a_method_returns_steps_if_and_only_if_its_action_has_three() -> None:
    steps = (one for one in "ab")
    assert ModelAction(three_step=True).steps_of("a.b", steps) is steps
    assert ModelAction().steps_of("a.b", True) is None
    with pytest.raises(ActionError, match=r"three-step action 'a\.b' returned None; expected a method that yields"):
        ModelAction(three_step=True).steps_of("a.b", None)
    with pytest.raises(ActionError, match=r"action 'a\.b' returned a generator, so none of its code ran; expected"):
        ModelAction().steps_of("a.b", steps)


class Cursor:
    """What a guard is laid over."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def execute(self, statement: str) -> None:
        self.said.append(statement)

    def commit(self) -> None:
        self.said.append("COMMIT")

    def rollback(self) -> None:
        self.said.append("ROLLBACK")

    def close(self) -> None:
        self.said.append("CLOSE")


@pytest.fixture
def guarded() -> Any:
    cursor: Any = Cursor()
    cursor.__class__ = guarded_class(Cursor)
    cursor.sidestream = Guard()
    return cursor


def test_between_jobs_everything_is_allowed(guarded: Any) -> None:
    for verb in (guarded.commit, guarded.rollback, guarded.close):
        verb()
    assert guarded.said == ["COMMIT", "ROLLBACK", "CLOSE"]


def test_inside_a_job_nothing_ends_the_transaction(guarded: Any) -> None:
    guarded.sidestream.begin("sale.order.print", [], None, None)
    for verb in (guarded.commit, guarded.rollback, guarded.close):
        with pytest.raises(CommitRefused, match=r"sale\.order\.print"):
            verb()
    guarded.sidestream.rollback(guarded)
    assert guarded.said == ["ROLLBACK"], "the executor itself may"
    with pytest.raises(CommitRefused):
        guarded.commit()


def test_a_declared_commit_commits_a_part_once(guarded: Any) -> None:
    parts = []

    def part() -> None:
        parts.append(1)
        with pytest.raises(CommitRefused):
            guarded.commit()  # a hook of that commit asks for another one

    guarded.sidestream.begin("sale.order.print", [], None, part)
    guarded.commit()
    guarded.commit()
    assert (parts, guarded.said) == ([1, 1], [])


def test_outside_a_transaction_statements_are_refused(guarded: Any) -> None:
    guarded.sidestream.begin("sale.order.print", [], None, None)
    with guarded.sidestream.outside(), pytest.raises(CommitRefused, match="second step"):
        guarded.execute("SELECT 1")
    guarded.execute("SELECT 2")
    assert guarded.said == ["SELECT 2"]
