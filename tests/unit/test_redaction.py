"""Which parts of errors and arguments are redacted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sidestream.redaction import redact, redact_arguments, redact_payload, redact_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("login failed: password=hunter2, user=ann", "login failed: password=***, user=ann"),
        ("{'api_key': 'k 1', 'id': 7}", "{'api_key': '***', 'id': 7}"),
        ('{"Authorization": "Bearer abc.def"}', '{"Authorization": "***"}'),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("GET https://courier.test/?token=abc&id=7 failed", "GET https://courier.test/?token=***&id=7 failed"),
        ("postgresql://ann:hunter2@db/shop", "postgresql://ann:***@db/shop"),
        ("client_secret => xyz", "client_secret => ***"),
        ("X-Api-Key: 12345", "X-Api-Key: ***"),
        ("access_token='a b'", "access_token='***'"),
        ("The passwords do not match.", "The passwords do not match."),
        ("KeyError: 'token'", "KeyError: 'token'"),
        ("Job 7 failed at 12:30: no address", "Job 7 failed at 12:30: no address"),
    ],
)
def test_secrets_in_a_text_are_hidden(text: str, shown: str) -> None:
    assert redact_text(text) == shown


@pytest.mark.parametrize("piece", ["token", "password='", "secret: ", "://a", "x", "token ", "api_key="])
def test_a_malicious_text_is_redacted_quickly(piece: str) -> None:
    text = piece * (16_000 // len(piece))
    began = time.process_time()
    redact_text(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"password": "x", "login": "ann"}, {"password": "***", "login": "ann"}),
        ([{"deep": [{"API_KEY": 5}]}], [{"deep": [{"API_KEY": "***"}]}]),
        ({"token": None, "tokens": ["a"]}, {"token": None, "tokens": "***"}),
        ("secret: abc", "secret: ***"),
        (7, 7),
    ],
)
def test_secrets_in_data_are_hidden(value: Any, shown: Any) -> None:
    assert redact(value) == shown


def test_positional_arguments_are_hidden_by_the_names_of_their_parameters() -> None:
    assert redact_arguments([1, "abc", "def"], ["order", "access_token"]) == [1, "***", "def"]
    payload = json.dumps({"v": 1, "args": [[1], "abc"], "kwargs": {"secret": "x", "n": 1}})
    assert json.loads(redact_payload(payload, ["self", "token"])) == {
        "args": [[1], "***"],
        "kwargs": {"secret": "***", "n": 1},
    }
