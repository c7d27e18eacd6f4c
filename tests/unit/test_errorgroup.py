"""Errors of one kind share a group."""

from __future__ import annotations

import pytest

from sidestream.job.errorgroup import LIMIT, error_group


@pytest.mark.parametrize(
    ("error", "shared"),
    [
        ("ValueError: order 17 has no lines", "ValueError: order … has no lines"),
        ("ValueError: order 9\nTraceback", "ValueError: order …"),
        ("\n\n  KeyError:   'x'", "KeyError: 'x'"),
        ("Missing: sale.order(5, 17, 3)", "Missing: sale.order(…)"),
        ("UserError: INV/2024/00017 is posted", "UserError: INV/… is posted"),
        ("at 2024-01-02T03:04:05.678Z", "at …T…Z"),
        ("object at 0x7f3a2b1c", "object at …"),
        ("token 6f1ed002ab5595859014ebf0951522d9 expired", "token … expired"),
        ("id 6f1ed002-ab55-9585-9014-ebf0951522d9", "id …"),
        ("deadbeef is a word, face too", "deadbeef is a word, face too"),
        ("", "(no message)"),
        ("  \n ", "(no message)"),
    ],
)
def test_ids_and_numbers_are_stripped(error: str, shared: str) -> None:
    assert error_group(error) == shared


def test_it_is_short_whatever_the_error_is() -> None:
    assert len(error_group("x" * 5000)) == LIMIT
