"""The rules' table: what is set is read, with who and why; bad input is one sentence; versions grow with commits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidestream.errors import InvalidName, SettingsError
from sidestream.job.rules import Limit, Pause, Rules, Scope
from sidestream.store import rules
from tests.integration.store.sessions import Session, beside, until_waiting

PATIENTLY = "SET lock_timeout = '20s'"
"""For who waits on purpose, while a busy machine looks whether it does."""


def test_nobody_set_any(a: Session) -> None:
    a.execute("UPDATE sidestream_meta SET rules_version = 0")
    assert (rules.read(a.cur), rules.version(a.cur), rules.entries(a.cur)) == (Rules(), 0, [])


def test_what_is_set_is_read(a: Session) -> None:
    rules.set_limit(a.cur, "global", "", Limit(concurrency=9))
    rules.set_limit(a.cur, "key", "courier", Limit(concurrency=1, rate=0.5, burst=3), by="Ann", note="their wish")
    rules.set_limit(a.cur, Scope.ACTION, "shop.pay", Limit(rate=0))
    rules.set_weight(a.cur, "queue", "mail", 0.5)
    rules.set_weight(a.cur, "group", "db/1", 3)
    pauses = [Pause(queue="mail"), Pause(action="shop.pay"), Pause(group="db/1"), Pause(action="act", group="db/1")]
    for pause in pauses:
        rules.pause(a.cur, pause, by="Bob", note="move")
    last = rules.set_aging(a.cur, 60)
    assert rules.read(a.cur) == Rules(
        last,
        60.0,
        frozenset(pauses),
        {"mail": 0.5},
        {"db/1": 3.0},
        {
            (Scope.GLOBAL, ""): Limit(9),
            (Scope.KEY, "courier"): Limit(1, 0.5, 3),
            (Scope.ACTION, "shop.pay"): Limit(None, 0.0),
        },
    )
    [entry] = [one for one in rules.entries(a.cur) if one.name == "courier"]
    assert (entry.changed_by, entry.note, entry.limit) == ("Ann", "their wish", Limit(1, 0.5, 3))


def test_set_again_replaces_and_remove_says_whether_there_was_one(a: Session) -> None:
    first = rules.set_limit(a.cur, "queue", "mail", Limit(concurrency=1, rate=2.0))
    second = rules.set_limit(a.cur, "queue", "mail", Limit(concurrency=5))
    assert second > first
    assert rules.read(a.cur).limits == {(Scope.QUEUE, "mail"): Limit(5)}
    pause = Pause(group="g")
    rules.pause(a.cur, pause)
    rules.set_weight(a.cur, "group", "g", 2)
    rules.set_aging(a.cur, 1)
    removals: list[Callable[[], bool]] = [
        lambda: rules.remove_limit(a.cur, "queue", "mail"),
        lambda: rules.resume(a.cur, pause),
        lambda: rules.remove_weight(a.cur, "group", "g"),
        lambda: rules.remove_aging(a.cur),
    ]
    for remove in removals:
        before = rules.version(a.cur)
        assert remove()
        assert rules.version(a.cur) > before
        assert not remove()
    left = rules.read(a.cur)
    assert (left.pauses, left.limits, left.group_weights, left.aging) == (frozenset(), {}, {}, Rules().aging)


def test_the_order_of_the_versions_is_the_order_of_the_commits(a: Session, b: Session) -> None:
    b.execute(PATIENTLY)
    a.execute("BEGIN")
    first = rules.pause(a.cur, Pause(queue="q1"))
    assert rules.read(b.cur).version < first, "not before it is committed"
    other = beside(lambda: rules.pause(b.cur, Pause(queue="q2")))
    until_waiting(a, b.pid)
    a.commit()
    assert other.result(20) > first
    assert len(rules.read(a.cur).pauses) == 2


def test_a_resume_that_waited_for_the_pause_ends_it(a: Session, b: Session) -> None:
    a.execute("BEGIN")
    rules.pause(a.cur, Pause(queue="q1"))
    other = beside(lambda: rules.resume(b.cur, Pause(queue="q1")))
    until_waiting(a, b.pid)
    a.commit()
    assert other.result(20)
    assert rules.read(a.cur).pauses == frozenset()


def test_nobody_sees_a_version_before_its_change(a: Session, b: Session) -> None:
    """Each statement commits by itself here: whoever saw the version alone would never look at the rules again."""
    b.execute(PATIENTLY)
    removed, kept = Pause(queue="q1"), Pause(queue="q2")
    before = rules.pause(a.cur, removed)
    changes: list[Callable[[], object]] = [lambda: rules.resume(b.cur, removed), lambda: rules.pause(b.cur, kept)]
    for change in changes:
        a.execute("BEGIN")
        a.execute("LOCK TABLE sidestream_rule IN EXCLUSIVE MODE")
        other = beside(change)
        until_waiting(a, b.pid)
        assert rules.version(a.cur) == before
        a.commit()
        other.result(20)
        before = rules.version(a.cur)
    assert rules.read(a.cur).pauses == {kept}


def test_a_database_put_back_is_not_outvoted_for_ever(a: Session) -> None:
    """Versions follow the clock: a change after a restore is newer than what a broker kept from before it."""
    kept = rules.pause(a.cur, Pause(queue="q1"))
    a.execute("UPDATE sidestream_meta SET rules_version = 7")
    assert rules.pause(a.cur, Pause(queue="q2")) > kept


BAD: list[tuple[Callable[[Session], object], str]] = [
    (lambda s: rules.set_limit(s.cur, "host", "x", Limit(1)), "'host' of a limit is not known; expected global, queue"),
    (lambda s: rules.set_limit(s.cur, "global", "x", Limit(1)), "has no name, but 'x' was given"),
    (lambda s: rules.set_limit(s.cur, "queue", "a b", Limit(1)), "queue name 'a b' is not allowed"),
    (lambda s: rules.set_limit(s.cur, "key", "courier:7", Limit(1)), "limit rule name 'courier:7' is not allowed"),
    (lambda s: rules.set_limit(s.cur, "queue", "q", Limit()), "needs a concurrency, a rate or both"),
    (lambda s: rules.set_limit(s.cur, "queue", "q", Limit(2**40)), r"expected 0 \(none\) to 2147483647"),
    (lambda s: rules.set_weight(s.cur, "action", "x", 1), "a queue or a group, not to 'action'"),
    (lambda s: rules.set_weight(s.cur, "queue", "q", -1), "weight -1.0 of the queue 'q' is not allowed"),
    (lambda s: rules.set_weight(s.cur, "queue", "q", 0), "to stop the queue, pause it"),
    (lambda s: rules.set_aging(s.cur, -1), "aging=-1 is not allowed"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_bad_input_is_one_sentence_and_changes_nothing(
    a: Session, change: Callable[[Session], object], sentence: str
) -> None:
    before = rules.version(a.cur)
    with pytest.raises((SettingsError, InvalidName), match=sentence):
        change(a)
    assert (rules.version(a.cur), rules.entries(a.cur)) == (before, [])
