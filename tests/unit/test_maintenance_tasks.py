"""What maintenance tasks decide from values alone, and how they are configured."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from sidestream.broker.protocol import Delivery, Generation, Lease
from sidestream.clock import SystemClock
from sidestream.job.durations import parse_duration
from sidestream.job.job import MAX_CRASHES
from sidestream.job.reference import Reference, direct_reference, row_reference
from sidestream.job.states import State
from sidestream.job.uuids import new_uuid
from sidestream.maintenance import verdicts
from sidestream.maintenance.generation import Contents, follow
from sidestream.maintenance.lease_reclaimer import LeaseReclaimer
from sidestream.maintenance.reconciler import Reconciler, rotate
from sidestream.maintenance.retention import RetentionTask
from sidestream.maintenance.verdicts import Verdict
from sidestream.settings import Settings
from sidestream.store.compare_and_set import CasResult

NOTHING: Any = None
"""Servers that are not asked."""
CONFIGURED = [LeaseReclaimer, Reconciler, RetentionTask]
SETTING = re.compile(r'``(\w+) = "(\w+)"``')


def reconciler(**times: float) -> Reconciler:
    return Reconciler(NOTHING, NOTHING, SystemClock(), **times)


def reclaimer(**times: float) -> LeaseReclaimer:
    return LeaseReclaimer(
        NOTHING, NOTHING, SystemClock(), worker="us", lanes=[], dead_workers=lambda owner: None, **times
    )


class TestSettings:
    @pytest.mark.parametrize("task", CONFIGURED)
    def test_the_docstring_of_a_task_names_settings_with_their_defaults(self, task: type) -> None:
        named = SETTING.findall(str(task.__doc__))
        assert named
        for name, shown in named:
            default = Settings.model_fields[name].default
            assert default == (None if shown == "none" else parse_duration(shown))

    @pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (reconciler, "lease"),
            (reconciler, "renew_interval"),
            (reclaimer, "lease"),
            (reclaimer, "grace"),
        ],
    )
    def test_a_time_that_is_none_is_refused(self, make: Any, name: str, seconds: float) -> None:
        said = f"^The maintenance task '{make.__name__.replace('reclaimer', 'lease reclaimer')}' has {name}={seconds}; "
        with pytest.raises(ValueError, match=said):
            make(**{name: seconds})

    def test_a_short_lease_is_looked_for_more_often(self) -> None:
        assert [reclaimer(lease=lease).every for lease in (1.0, 4.0, 15.0)] == [0.25, 1.0, 1.0]


ROW = row_reference(b"database", 7, "act", None)
DIRECT = direct_reference(new_uuid(), "act", None)


def delivery(reference: Reference, crashes: int = 0) -> Delivery:
    return Delivery(reference.pack(), "lane", Lease(b"entry", "us", 2), 0, crashes=crashes)


class TestVerdicts:
    @pytest.mark.parametrize("running", [None, frozenset(), frozenset({DIRECT.pack()})])
    def test_a_delivery_that_cannot_be_read_is_given_back(self, running: frozenset[bytes] | None) -> None:
        assert verdicts.without_row(delivery(DIRECT), None, running) is Verdict.GIVE_BACK

    @pytest.mark.parametrize("running", [None, frozenset(), frozenset({ROW.pack()})])
    def test_a_row_is_charged_first(self, running: frozenset[bytes] | None) -> None:
        assert verdicts.without_row(delivery(ROW), ROW, running) is None

    def test_a_direct_job_that_did_not_run_is_not_charged(self) -> None:
        assert verdicts.without_row(delivery(DIRECT, MAX_CRASHES - 1), DIRECT, frozenset()) is Verdict.GIVE_BACK

    @pytest.mark.parametrize("running", [None, frozenset({DIRECT.pack()})])
    def test_a_direct_job_that_may_have_run_fails_with_its_last_crash(self, running: frozenset[bytes] | None) -> None:
        found = [verdicts.without_row(delivery(DIRECT, crashes), DIRECT, running) for crashes in range(MAX_CRASHES)]
        assert found == [Verdict.CHARGE_CRASH] * (MAX_CRASHES - 1) + [Verdict.FAIL]

    @pytest.mark.parametrize(
        ("written", "verdict"),
        [
            (CasResult(applied=True, state=State.PENDING), Verdict.GIVE_BACK),
            (CasResult(applied=False, state=State.PENDING), Verdict.GIVE_BACK),  # charged by another worker
            (CasResult(applied=False, state=State.PENDING, locked=True), None),
            (CasResult(applied=True, state=State.FAILED), Verdict.SETTLE),
            (CasResult(applied=False, state=State.DONE), Verdict.SETTLE),
            (CasResult(applied=False, state=None), Verdict.SETTLE),
        ],
    )
    def test_a_row_that_ended_is_settled(self, written: CasResult, verdict: Verdict | None) -> None:
        assert verdicts.of_row(written) is verdict


class TestGeneration:
    KNOWN = Contents(3, "a")
    BUILDS = Contents(3, "a", building=True)
    WAITS = Contents(3, "a", build_at=5.0)

    @pytest.mark.parametrize("known", [Contents(), KNOWN, BUILDS, WAITS])
    @pytest.mark.parametrize("run_id", ["a", "b"])
    def test_a_new_one_is_built_after_a_wait(self, known: Contents, run_id: str) -> None:
        found = follow(known, Generation(4, run_id, frozenset()), synced=False, build_at=9.0)
        assert found == Contents(4, run_id, build_at=9.0)

    @pytest.mark.parametrize("known", [Contents(), KNOWN, BUILDS, WAITS])
    def test_a_new_one_that_others_built_is_compared_at_once(self, known: Contents) -> None:
        found = follow(known, Generation(4, "a", frozenset()), synced=True, build_at=9.0)
        assert found == Contents(4, "a", everything=True)

    @pytest.mark.parametrize("known", [KNOWN, BUILDS, WAITS])
    def test_the_same_one_changes_nothing(self, known: Contents) -> None:
        assert follow(known, Generation(3, "a", frozenset()), synced=False, build_at=9.0) == known

    @pytest.mark.parametrize("known", [KNOWN, BUILDS, WAITS])
    def test_no_job_waits_for_our_build_of_one_that_others_built(self, known: Contents) -> None:
        assert follow(known, Generation(3, "a", frozenset()), synced=True, build_at=9.0) == self.KNOWN

    @pytest.mark.parametrize("synced", [False, True])
    def test_a_restarted_server_is_compared_at_once(self, synced: bool) -> None:
        found = follow(self.KNOWN, Generation(3, "b", frozenset()), synced=synced, build_at=9.0)
        assert found == Contents(3, "b", everything=True)

    def test_a_restarted_server_that_is_not_built_yet_is_built(self) -> None:
        found = follow(self.WAITS, Generation(3, "b", frozenset()), synced=False, build_at=9.0)
        assert found == Contents(3, "b", build_at=5.0, everything=True)


class TestRotation:
    @pytest.mark.parametrize(
        ("last", "order"), [(-1, [9, 1, 3, 5]), (1, [9, 3, 5, 1]), (4, [9, 5, 1, 3]), (5, [9, 1, 3, 5])]
    )
    def test_the_newest_is_first_and_the_others_go_on(self, last: int, order: list[int]) -> None:
        assert rotate([1, 3, 5, 9], last) == order

    def test_one_chunk_is_the_newest(self) -> None:
        assert rotate([4], 4) == [4]
        assert rotate([], 4) == []
