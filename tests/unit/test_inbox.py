"""When the reader of an inbox receives entries, and in which order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from sidestream.worker.inbox import Inbox

LONG = 30.0
"""Seconds that no test here waits."""


def never() -> float:
    """Fail: nothing is to be gathered."""
    raise AssertionError("it gathered")


def gathering(inbox: Inbox[int], then: Callable[[], None]) -> Callable[[], float]:
    """Return how long to gather (long), and do something at the moment that it begins."""

    def begins() -> float:
        then()
        return LONG

    return begins


def test_an_empty_inbox_times_out() -> None:
    assert Inbox[int]().take(0.0, never) == []


def test_an_urgent_entry_is_taken_immediately_with_all_others() -> None:
    inbox = Inbox[int]()
    inbox.put(1, urgent=False)
    inbox.put(2, urgent=True)
    inbox.put(3, urgent=False)
    assert inbox.take(None, never) == [1, 2, 3]
    assert inbox.empty()


def test_entries_that_arrive_while_it_gathers_are_taken_too() -> None:
    inbox = Inbox[int]()
    inbox.put(1, urgent=False)

    def soon() -> float:
        inbox.put(2, urgent=False)
        return 0.001

    assert inbox.take(None, soon) == [1, 2]


def test_an_urgent_entry_ends_the_gathering() -> None:
    inbox = Inbox[int]()
    inbox.put(1, urgent=False)

    def told() -> None:
        inbox.put(2, urgent=False)
        inbox.put(3, urgent=True)

    began = time.monotonic()
    assert inbox.take(None, gathering(inbox, told)) == [1, 2, 3]
    assert time.monotonic() - began < LONG / 2


def test_an_entry_that_is_not_urgent_wakes_nobody_while_it_gathers() -> None:
    inbox = Inbox[int]()
    inbox.put(0, urgent=False)
    begun, batches = threading.Event(), list[list[int]]()
    reader = threading.Thread(target=lambda: batches.append(inbox.take(None, gathering(inbox, begun.set))))
    reader.start()
    assert begun.wait(LONG)
    for number in range(1, 50):
        inbox.put(number, urgent=False)
    reader.join(0.3)  # gives it the interpreter: each of them would have ended the wait
    assert not batches
    inbox.put(50, urgent=True)
    reader.join(LONG)
    assert batches == [list(range(51))]


def test_urgent_entries_leave_nothing_behind() -> None:
    inbox = Inbox[int]()
    for number in range(1000):
        inbox.put(number, urgent=True)
        assert inbox.take(None, never) == [number]
    inbox.put(0, urgent=False)
    assert inbox.take(None, lambda: 0.0) == [0]
    assert inbox._urgent.empty()


@pytest.mark.parametrize("urgent_each", [1, 2, 7])
def test_no_urgent_entry_waits_for_the_gathering_whenever_it_comes(urgent_each: int) -> None:
    inbox, taken = Inbox[int](), list[int]()
    arrived = threading.Semaphore(0)

    def read() -> None:
        while len(taken) < 3000:
            lot = inbox.take(LONG, lambda: LONG)
            taken.extend(lot)
            for number in lot:
                if number % urgent_each == 0:
                    arrived.release()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in range(3000):
        inbox.put(number, urgent=number % urgent_each == 0)
        if number % urgent_each == 0:
            assert arrived.acquire(timeout=LONG / 2)  # else it slept in the gathering
    inbox.put(-urgent_each, urgent=True)
    reader.join(LONG)
    assert taken[:3000] == list(range(3000))
