"""A reason is a code with parameters: it survives its row, and every code has an English text."""

from __future__ import annotations

import pytest

from sidestream.job.reason import Reason, ReasonCode

REASONS = [
    Reason(ReasonCode.LOCKED),
    Reason(ReasonCode.BLOCKED, {"by": 17}),
    Reason(ReasonCode.SNOOZED, {"seconds": 60.0, "message": "the bank {opens} | at nine"}),
    Reason(ReasonCode.DISCARDED),
    Reason(ReasonCode.DISCARDED, {"by": "Zoë"}),
    Reason(ReasonCode.TEXT, {"text": "no stock"}),
]


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_a_reason_is_read_as_it_was_stored(reason: Reason) -> None:
    assert Reason.parse(reason.stored()) == reason


@pytest.mark.parametrize(
    "text",
    ["the bank opens at nine", "locked by Ann", "replaced|", 'replaced|{"of": 7}', "replaced|[1]", "snoozed", ""],
)
def test_any_other_text_is_shown_as_it_is(text: str) -> None:
    assert Reason.parse(text) == Reason(ReasonCode.TEXT, {"text": text})
    assert str(Reason.parse(text)) == text


def test_every_code_has_an_english_text() -> None:
    anything = {
        "error": "no",
        "seconds": 1,
        "message": "m",
        "by": 1,
        "of": 1,
        "how": "h",
        "expires_at": "x",
        "text": "t",
    }
    for code in ReasonCode:
        assert str(Reason(code, anything))
