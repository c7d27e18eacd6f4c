"""The packed reference: what Redis carries instead of a job.

It is built from the row's unchangeable fields alone, so the same job has the same bytes everywhere, and it carries no
user, no arguments and no signature: the row decides.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from sidestream.errors import BadReference, UnknownVersion
from sidestream.job.names import tag

_ROW = struct.Struct(">B8sQ4s4s8s")
_DIRECT = struct.Struct(">B8s16s4s4s8s")
_ROW_VERSION = 0x01
_DIRECT_VERSION = 0x02
ROW_SIZE = _ROW.size
"""Length of a reference to a row, in bytes (33)."""
DIRECT_SIZE = _DIRECT.size
"""Length of a reference to a direct job, in bytes (41)."""
NO_TAG4 = bytes(4)
NO_TAG8 = bytes(8)
KEY_OFFSET_FROM_END = 8
"""The key tag is the last 8 bytes of both forms; all zero means that the job has no key."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Which job, and what ordering needs to know of it."""

    #: First 8 bytes of the database's uuid; all zero for a direct job that needs no database.
    database: bytes
    #: The row's id; 0 for a direct job.
    id: int
    #: The direct job's uuid; None for a row.
    uuid: UUID | None
    #: 4 bytes that stand for the action's name.
    action: bytes
    #: 4 bytes that stand for the group; zero until groups exist.
    group: bytes = NO_TAG4
    #: 8 bytes that stand for the ordering key; all zero when there is none.
    key: bytes = NO_TAG8

    @property
    def direct(self) -> bool:
        """Whether the job lives in Redis alone."""
        return self.uuid is not None

    def pack(self) -> bytes:
        """Return the bytes that Redis carries."""
        if self.uuid is not None:
            return _DIRECT.pack(_DIRECT_VERSION, self.database, self.uuid.bytes, self.action, self.group, self.key)
        return _ROW.pack(_ROW_VERSION, self.database, self.id, self.action, self.group, self.key)

    @classmethod
    def unpack(cls, raw: bytes) -> Reference:
        """Read what :meth:`pack` wrote.

        Raises :class:`UnknownVersion` when a newer release wrote it and :class:`BadReference` when nobody of ours did.
        """
        if not raw:
            raise BadReference("An empty reference was found in Redis; it was not written by Sidestream.")
        if raw[0] == _ROW_VERSION and len(raw) == ROW_SIZE:
            _, database, row_id, action, group, key = _ROW.unpack(raw)
            return cls(database, row_id, None, action, group, key)
        if raw[0] == _DIRECT_VERSION and len(raw) == DIRECT_SIZE:
            _, database, raw_uuid, action, group, key = _DIRECT.unpack(raw)
            return cls(database, 0, UUID(bytes=raw_uuid), action, group, key)
        if raw[0] in (_ROW_VERSION, _DIRECT_VERSION) or raw[0] > 0x0F:
            raise BadReference(f"The reference {raw[:48].hex()} in Redis is truncated or foreign ({len(raw)} bytes).")
        raise UnknownVersion(
            f"The reference {raw[:48].hex()} in Redis has version {raw[0]}; this release knows 1 and 2."
        )


def row_reference(database: bytes, row_id: int, action: str, key: str | None) -> Reference:
    """Return the reference of the row ``row_id`` in the database whose 8-byte tag is ``database``."""
    return Reference(database, row_id, None, tag(action, 4), NO_TAG4, tag(key, 8) if key else NO_TAG8)


def direct_reference(uuid: UUID, action: str, key: str | None, database: bytes = NO_TAG8) -> Reference:
    """Return the reference of the direct job ``uuid``."""
    return Reference(database, 0, uuid, tag(action, 4), NO_TAG4, tag(key, 8) if key else NO_TAG8)
