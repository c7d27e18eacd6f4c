"""Identities of direct jobs: uuids that sort by the time they were made."""

from __future__ import annotations

import os
import time
from uuid import UUID

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_62 = (1 << 62) - 1


def new_uuid(now_ns: int | None = None) -> UUID:
    """Return a version 7 uuid for the moment ``now_ns`` (Unix nanoseconds; None means now).

    48 bits of milliseconds, 12 bits of the millisecond's fraction (so that the ids of one process sort as they were
    made), 62 bits of chance: RFC 9562, sections 5.7 and 6.2 method 3, https://www.rfc-editor.org/rfc/rfc9562.
    """
    milliseconds, rest = divmod(time.time_ns() if now_ns is None else now_ns, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    chance = int.from_bytes(os.urandom(8)) & _RANDOM_62
    return UUID(int=(milliseconds & (1 << 48) - 1) << 80 | _VERSION_7 | fraction << 64 | _VARIANT | chance)
