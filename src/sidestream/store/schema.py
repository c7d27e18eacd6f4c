"""Install our tables and say which database this is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from uuid import UUID

from sidestream.errors import SchemaMismatch
from sidestream.store.cursor import Cursor

SCHEMA_VERSION = 1
"""Version of the tables that this release reads and writes."""

# A number of our own (the letters "sidestrm"), so that two installers of one database wait for each other.
_INSTALL_LOCK = 0x73696465_7374726D
# to_regclass answers NULL where naming a missing table would fail, and with it the caller's transaction.
_INSTALLED = "SELECT to_regclass('sidestream_meta') IS NOT NULL"
_META = "SELECT version, database_uuid::text FROM sidestream_meta"


@dataclass(frozen=True, slots=True)
class Database:
    """Which database the rows are in."""

    #: Made at installation; a copy made by other means than ours has the same one.
    uuid: UUID

    @property
    def tag(self) -> bytes:
        """The first 8 bytes of the uuid: what references carry."""
        return self.uuid.bytes[:8]


def install(cur: Cursor) -> Database:
    """Create tables, indexes and settings unless they are there, and return the database; the caller commits.

    Raises:
        SchemaMismatch: The tables are there, of another release.
    """
    cur.execute("SELECT pg_advisory_xact_lock(%(lock)s::bigint)", {"lock": _INSTALL_LOCK})
    if not _installed(cur):
        cur.execute(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
        cur.execute("INSERT INTO sidestream_meta (version) VALUES (%(version)s::integer)", {"version": SCHEMA_VERSION})
    return identify(cur)


def identify(cur: Cursor) -> Database:
    """Return which database this is; the caller's transaction survives a refusal.

    Raises:
        SchemaMismatch: The tables are missing or of another release.
    """
    if not _installed(cur):
        raise SchemaMismatch("The database has no Sidestream tables (no sidestream_meta); run: sidestream init-db")
    cur.execute(_META)
    found = cur.fetchone()
    if found is None:
        raise SchemaMismatch("The table sidestream_meta is empty, expected one row; restore it from a backup.")
    version, uuid = found
    if version != SCHEMA_VERSION:
        what = "upgrade Sidestream" if version > SCHEMA_VERSION else "run the release's upgrade"
        raise SchemaMismatch(f"The Sidestream tables have version {version}, expected {SCHEMA_VERSION}; {what}.")
    return Database(UUID(uuid))


def _installed(cur: Cursor) -> bool:
    cur.execute(_INSTALLED)
    return bool(cur.fetchone()[0])
