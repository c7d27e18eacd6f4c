"""An action that commits in parts cannot swallow a failed commit."""

from __future__ import annotations

import pytest

from sidestream.errors import LockLost
from sidestream.executors.partial_commit import PartialCommits
from sidestream.executors.protocol import ApplicationChanged, Conflict
from sidestream.job.outcome import Release
from sidestream.job.reason import Reason, ReasonCode


def test_successful_parts_leave_no_failure() -> None:
    parts = PartialCommits()
    for _ in range(3):
        with parts.boundary():
            pass
    parts.check()


@pytest.mark.parametrize(
    "failure", [LockLost("gone"), ApplicationChanged(Release(Reason(ReasonCode.UPGRADING), 1000)), Conflict("met")]
)
def test_after_a_failed_part_no_other_begins_and_nothing_is_committed(failure: BaseException) -> None:
    parts = PartialCommits()
    with pytest.raises(type(failure)), parts.boundary():
        raise failure
    began = False
    with pytest.raises(type(failure)) as again, parts.boundary():
        began = True
    assert again.value is failure
    assert not began
    with pytest.raises(type(failure)):
        parts.check()
