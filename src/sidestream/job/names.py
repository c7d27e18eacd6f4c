"""Check the names of queues, actions and keys, and compute their tags."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from hashlib import blake2b
from typing import TypeVar

from sidestream.errors import InvalidName
from sidestream.job.job import LOWEST_PRIORITY

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
NAME_LIMIT = 63
"""Longest name of a queue or limit rule, in characters."""
ACTION_LIMIT = 255
"""The same of an action: ``model.method`` of Odoo is easily longer than the others."""
T = TypeVar("T")
KEY_LIMIT = 200
"""Longest ordering key, group or limit key, in characters."""
READABLE = 40
"""How many characters of a text that may not be a key remain in front of its hash, for people."""


def fit_key(text: T) -> T | str:
    """Return a key, group or unique text, hashed if it is too long or not printable.

    Such texts are made of what users wrote, and no user's request is to fail because of it. What is no text, or empty,
    is returned as it is, for its check to refuse.
    """
    if not isinstance(text, str) or (len(text) <= KEY_LIMIT and text.isprintable()):
        return text
    readable = "".join(character for character in text if character.isprintable())[:READABLE]
    return f"{readable}#{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def fit_limit(limit: T) -> T | str:
    """Return a limit key, whose value is hashed as by :func:`fit_key`."""
    if not isinstance(limit, str) or fit_key(limit) == limit:
        return limit
    rule, colon, value = limit.partition(":")
    digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{rule}:#{digest}" if colon else limit


def check_limit(limit: str) -> str:
    """Return ``limit`` if it is ``rule`` or ``rule:value``, else raise InvalidName."""
    _check("limit rule", limit_rule(_check_text("limit", limit)))
    return limit


def check_priority(priority: object) -> int:
    """Return ``priority`` if it is 0 (first) to 9, else raise :class:`InvalidName`."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= LOWEST_PRIORITY:
        raise InvalidName(f"The priority {priority!r:.40} is not allowed: expected 0 (first) to {LOWEST_PRIORITY}.")
    return priority


def limit_rule(limit: str) -> str:
    """Return the name of the rule that a limit key belongs to: the part before its first colon."""
    return limit.partition(":")[0]


@lru_cache(maxsize=4096)
def tag(text: str, size: int) -> bytes:
    """Return ``size`` bytes (4 or 8) of BLAKE2b that stand for ``text`` inside a reference."""
    return blake2b(text.encode(), digest_size=size).digest()


def _check_text(kind: str, text: object) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= KEY_LIMIT or not text.isprintable():
        raise InvalidName(
            f"The {kind} {text!r:.80} is not allowed: expected 1 to {KEY_LIMIT} printable characters; "
            + ("shorten it, for example to an id." if text else "leave it out.")
        )
    return text


def _check(kind: str, name: object, longest: int = NAME_LIMIT) -> str:
    if not isinstance(name, str) or len(name) > longest or not _NAME.fullmatch(name):
        raise InvalidName(
            f"The {kind} name {name!r:.80} is not allowed: expected 1 to {longest} letters, digits, '_', '-' or '.', "
            "not beginning with '-' or '.'; rename it."
        )
    return name


check_queue = partial(_check, "queue")
check_action = partial(_check, "action", longest=ACTION_LIMIT)
check_rule = partial(_check, "limit rule")
"""Return the name of a queue, an action or a limit rule if it is allowed, else raise :class:`InvalidName`."""
check_key = partial(_check_text, "key")
check_group = partial(_check_text, "group")
check_unique = partial(_check_text, "unique")
"""Return a key, group or unique text of 1 to 200 printable characters, else raise :class:`InvalidName`."""
