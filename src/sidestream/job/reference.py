"""The packed reference: what Redis carries instead of a job.

It is built from the row's unchangeable fields alone, so the same job has the same bytes everywhere, and it carries no
user, no arguments and no signature: the row decides.

Layout, big endian: version (1), database (8), id (8) or uuid (16), limit (12, only where the job has a limit key),
action (4), group (8), key (8). The fields behind the limit are found from the end, whatever the version.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from sidestream.errors import BadReference, UnknownVersion
from sidestream.job.names import limit_rule, tag

_ROW = struct.Struct(">B8sQ4s8s8s")
_DIRECT = struct.Struct(">B8s16s4s8s8s")
_LIMITED_ROW = struct.Struct(">B8sQ12s4s8s8s")
_LIMITED_DIRECT = struct.Struct(">B8s16s12s4s8s8s")
_BY_VERSION = {1: _ROW, 2: _DIRECT, 3: _LIMITED_ROW, 4: _LIMITED_DIRECT}
SIZES = {version: form.size for version, form in _BY_VERSION.items()}
"""Length in bytes by version: a row, a direct job, and the same two with a limit key."""
LIMITED = frozenset({3, 4})
"""The versions that carry a limit key."""
NO_TAG8 = bytes(8)


def action_of(raw: bytes) -> bytes:
    """Return the 4-byte tag of the action in packed bytes, without reading the rest."""
    return raw[-20:-16]


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
    #: 8 bytes that stand for the group; all zero for the group of those that have none.
    group: bytes = NO_TAG8
    #: 8 bytes that stand for the ordering key; all zero when there is none.
    key: bytes = NO_TAG8
    #: 4 bytes that stand for the limit rule and 8 that stand for the whole limit key; empty when there is none.
    limit: bytes = b""

    @property
    def direct(self) -> bool:
        """Whether the job lives in Redis alone."""
        return self.uuid is not None

    def pack(self) -> bytes:
        """Return the bytes that Redis carries."""
        rest = (self.limit,) if self.limit else ()
        if self.uuid is not None:
            form, version, identity = (_LIMITED_DIRECT, 4, self.uuid.bytes) if rest else (_DIRECT, 2, self.uuid.bytes)
            return form.pack(version, self.database, identity, *rest, self.action, self.group, self.key)
        row, version = (_LIMITED_ROW, 3) if rest else (_ROW, 1)
        return row.pack(version, self.database, self.id, *rest, self.action, self.group, self.key)

    @classmethod
    def unpack(cls, raw: bytes) -> Reference:
        """Read what :meth:`pack` wrote.

        Raises :class:`UnknownVersion` when a newer release wrote it, and :class:`BadReference` when
        no release of Sidestream did.
        """
        if not raw:
            raise BadReference("An empty reference was found in Redis; it was not written by Sidestream.")
        form = _BY_VERSION.get(raw[0])
        if form is not None and len(raw) == form.size:
            version, database, identity, *limit, action, group, key = form.unpack(raw)
            uuid = UUID(bytes=identity) if version in (2, 4) else None
            return cls(
                database, 0 if uuid is not None else identity, uuid, action, group, key, limit[0] if limit else b""
            )
        if form is not None or raw[0] > 0x0F:
            raise BadReference(f"The reference {raw[:64].hex()} in Redis is truncated or foreign ({len(raw)} bytes).")
        raise UnknownVersion(
            f"The reference {raw[:64].hex()} in Redis has version {raw[0]}; this release knows 1 to {max(_BY_VERSION)}."
        )


def row_reference(
    database: bytes, row_id: int, action: str, key: str | None, group: str | None = None, limit: str | None = None
) -> Reference:
    """Return the reference of the row ``row_id`` in the database with this 8-byte tag."""
    return Reference(database, row_id, None, tag(action, 4), group_tag(group), _key_tag(key), limit_tag(limit))


def direct_reference(
    uuid: UUID,
    action: str,
    key: str | None,
    database: bytes = NO_TAG8,
    group: str | None = None,
    limit: str | None = None,
) -> Reference:
    """Return the reference of the direct job ``uuid``."""
    return Reference(database, 0, uuid, tag(action, 4), group_tag(group), _key_tag(key), limit_tag(limit))


def group_tag(group: str | None) -> bytes:
    """Return the 8 bytes that stand for a group; all zero for the group of those that have none."""
    return tag(group, 8) if group else NO_TAG8


def limit_tag(limit: str | None) -> bytes:
    """Return the 12-byte tag of a limit key, whose first 4 bytes are its rule's; else empty."""
    return tag(limit_rule(limit), 4) + tag(limit, 8) if limit else b""


def _key_tag(key: str | None) -> bytes:
    return tag(key, 8) if key else NO_TAG8
