"""The options with which our sessions begin, by the version of the server."""

from __future__ import annotations

import pytest

from sidestream.store.adapter import server_options

IDLE = "-c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
TRANSACTION = "-c transaction_timeout=0"


@pytest.mark.parametrize("version", [0, 140_000, 150_018, 169_999])
def test_an_older_or_unknown_server_is_not_told_of_options_that_it_would_refuse(version: int) -> None:
    assert server_options("", version).endswith(IDLE)
    assert "transaction_timeout" not in server_options("-c work_mem=7MB", version)


@pytest.mark.parametrize("version", [170_000, 180_001])
def test_a_transaction_may_take_its_time_whatever_the_operator_says(version: int) -> None:
    options = server_options("-c transaction_timeout=5s -c work_mem=7MB", version)
    assert options.endswith(f"-c transaction_timeout=5s -c work_mem=7MB {IDLE} {TRANSACTION}"), "the last one wins"


@pytest.mark.parametrize("version", [150_018, 170_000])
@pytest.mark.parametrize("given", ["", "-c work_mem=7MB -c idle_session_timeout=0500", "-c jit=on"])
def test_options_that_were_added_before_are_not_added_again(given: str, version: int) -> None:
    options = server_options(given, version)
    assert given in options
    assert server_options(options, version) == options


def test_the_version_may_become_known_later() -> None:
    assert server_options(server_options("-c jit=on", 0), 170_000) == server_options("-c jit=on", 170_000)
