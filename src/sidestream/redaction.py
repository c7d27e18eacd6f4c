"""Redact likely secrets, and remove control characters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal interprets; errors may quote text from users and from other servers."""
_NAME = r"(?:password|passwd|token|authorization|secret|api[_\-]?key)"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# name=value, name: value, "name": "value", name => value; the value in quotes, or to the next space or separator. A
# scheme before the value (Authorization: Bearer ...) stays.
_NAMED = re.compile(
    rf"""
    (?P<before> {_NAME}[\w\-]{{0,40}} \\?["']? \s* (?: => | [:=] ) \s* (?: (?:bearer|basic|token|digest)\s+ )? )
    (?P<value> \\?(?P<quote>["']).*?\\?(?P=quote) | [^\s,;&<>()\[\]{{}}"']+ )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SCHEME = re.compile(r"(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/\-]{8,}=*", re.IGNORECASE)
_SIGNS = ("passw", "token", "authorization", "secret", "api", "bearer", "basic", "://")
"""A text without any of them contains no secret."""
_IN_URL = re.compile(r"(://[^/\s:@]*:)[^@\s/]+(?=@)")


def redact_text(text: str) -> str:
    """Redact values that look like secrets in ``text``, such as an error or a traceback."""
    lower = text.lower()
    if not any(sign in lower for sign in _SIGNS):
        return text  # the common case; a worker may log thousands of lines a second
    text = _NAMED.sub(lambda found: found["before"] + (found["quote"] or "") + HIDDEN + (found["quote"] or ""), text)
    return _IN_URL.sub(rf"\1{HIDDEN}", _SCHEME.sub(rf"\1{HIDDEN}", text))


def printable(text: str) -> str:
    """Remove the characters that a terminal interprets, except line ends and tabs."""
    return CONTROL.sub("", text)


def redact(value: Any) -> Any:
    """Redact values that look like secrets in JSON data."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {name: HIDDEN if is_secret(name) and one is not None else redact(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [redact(one) for one in value]
    return value


def redact_arguments(args: Sequence[Any], names: Sequence[str] = ()) -> list[Any]:
    """Redact positional arguments; ``names`` are their known parameter names."""
    return [
        HIDDEN if at < len(names) and is_secret(names[at]) and one is not None else redact(one)
        for at, one in enumerate(args)
    ]


def redact_payload(payload: str, names: Sequence[str] = ()) -> str:
    """Redact a row's payload (JSON); ``names`` are the names of its positional arguments."""
    found = json.loads(payload)
    kept = {"args": redact_arguments(found.get("args", []), names), "kwargs": redact(found.get("kwargs", {}))}
    return json.dumps(kept, ensure_ascii=False)


def is_secret(name: object) -> bool:
    """Return whether a value with this name is redacted."""
    return isinstance(name, str) and _SECRET_NAME.search(name) is not None
