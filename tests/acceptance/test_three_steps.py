"""A three-step job makes its external call once, and runs meanwhile, although its row is not locked."""

from __future__ import annotations

import psycopg
import pytest

from sidestream.store import control
from tests.acceptance.rig import Rig, open_folder

HELD = 2.0
"""Seconds for which somebody holds the job's row after its call was answered."""


@pytest.mark.parametrize("conflict", ["return", "replace", "newest"])
@pytest.mark.parametrize("until", ["started", "done"])
def test_a_duplicate_enqueued_during_the_call_does_not_repeat_it(rig: Rig, until: str, conflict: str) -> None:
    with open_folder() as folder, psycopg.connect(rig.dsn) as enqueuer:
        options = {"unique": "once", "unique_until": until, "on_conflict": conflict}
        rig.start()
        job = rig.enqueue("ship.slow", str(folder), **options)
        rig.until((folder / "calls").exists)
        rig.jobs.enqueue("ship.slow", (str(folder),), connection=enqueuer, **options)
        (folder / "go").touch()
        assert rig.ends(job).state == "done", "it does not wait for the enqueuer's transaction"
        assert (folder / "calls").read_text() == "called\n"
        assert rig.effects(job) == ["answered"]
        enqueuer.rollback()


def test_a_job_that_makes_its_call_does_not_expire(rig: Rig) -> None:
    with open_folder() as folder:
        rig.start()
        job = rig.enqueue("ship.slow", str(folder), expires_in=3)
        rig.until((folder / "calls").exists)
        later = rig.enqueue("note", queue="unserved", expires_in=3)
        assert rig.ends(later).state == "cancelled"
        (folder / "go").touch()
        assert rig.ends(job).state == "done"
        assert rig.effects(job) == ["answered"]


def test_a_job_that_makes_its_call_is_stopped_when_a_person_cancels_it(rig: Rig) -> None:
    with open_folder() as folder:
        rig.start()
        job = rig.enqueue("ship.slow", str(folder))
        rig.until((folder / "calls").exists)
        with rig.look.cursor() as cursor:
            assert control.cancel(cursor, job).locked
        assert rig.ends(job, 10).state == "cancelled"
        after = rig.enqueue("note")
        assert rig.ends(after).state == "done"
        assert rig.effects(job) == []


def test_a_row_that_is_locked_for_a_moment_after_the_call_does_not_repeat_it(rig: Rig) -> None:
    with open_folder() as folder, psycopg.connect(rig.dsn) as other:
        rig.start()
        job = rig.enqueue("ship.slow", str(folder))
        rig.until((folder / "calls").exists)
        other.execute("SELECT FROM sidestream_job WHERE id = %s FOR UPDATE", (job,))
        (folder / "go").touch()
        released = other.execute("SELECT clock_timestamp() + %s * interval '1 second'", (HELD,)).fetchone()
        assert released is not None
        rig.until(lambda: rig.look.execute("SELECT clock_timestamp() >= %s", released).fetchone() == (True,))
        other.rollback()
        assert rig.ends(job).state == "done"
        assert (folder / "calls").read_text() == "called\n"
        assert rig.effects(job) == ["answered"]
