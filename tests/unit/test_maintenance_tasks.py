"""How maintenance tasks are configured."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from sidestream.clock import SystemClock
from sidestream.job.durations import parse_duration
from sidestream.maintenance.lease_reclaimer import LeaseReclaimer
from sidestream.maintenance.reconciler import Reconciler
from sidestream.maintenance.retention import RetentionTask
from sidestream.settings import Settings

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
