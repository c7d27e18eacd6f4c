"""Install our tables and say which database this is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from uuid import UUID

from sidestream.errors import ForeignDatabase, SchemaMismatch
from sidestream.store.cursor import Cursor

SCHEMA_VERSION = 3
"""Version of the tables that this release reads and writes."""

# A number of our own (the letters "sidestrm"), so that two installers of one database wait for each other.
_INSTALL_LOCK = 0x73696465_7374726D
_UPGRADES = {1: "upgrade_1_to_2.sql", 2: "upgrade_2_to_3.sql"}
"""By the version that it begins with: the file that makes the next one of it."""
_UPGRADE_PATIENCE = "10s"
# Whoever waits for our exclusive lock stands in front of everybody who only wants to read.
_PATIENTLY = "SELECT set_config('lock_timeout', %(timeout)s::text, true)"
_PATIENCE = "SELECT current_setting('lock_timeout')"
_VERSION = "SELECT version FROM sidestream_meta"

# to_regclass answers NULL where naming a missing table would fail, and with it the caller's transaction.
_INSTALLED = "SELECT to_regclass('sidestream_meta') IS NOT NULL"
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-CONTROL-SYSTEM
_HOME = """(SELECT system_identifier || '/' || d.oid FROM pg_control_system(), pg_database d
            WHERE d.datname = current_database())"""
# ruff: noqa: S608  (made of this room's own constants)
# "former" by way of JSON, because tables of an earlier version have no such column and are to be told so.
_META = f"SELECT version, database_uuid::text, home = {_HOME}, to_jsonb(m) ->> 'former' FROM sidestream_meta m"
_INSTALL = f"INSERT INTO sidestream_meta (version, home) SELECT %(version)s::integer, {_HOME}"
_ADOPT = f"""
    UPDATE sidestream_meta SET database_uuid = gen_random_uuid(), home = {_HOME}, former = ltrim(
        former || ' ' || database_uuid || ':' || (SELECT coalesce(max(id), 0) FROM sidestream_job))"""


@dataclass(frozen=True, slots=True)
class Database:
    """Which database the rows are in."""

    #: Made at installation.
    uuid: UUID
    #: It is a copy, or was restored elsewhere, and nobody said yet whose jobs these are: nothing of it may run.
    copied: bool = False
    #: Before it was adopted, the oldest first: the last job of that time, and the uuid that was.
    former: tuple[tuple[int, UUID], ...] = ()

    @property
    def tag(self) -> bytes:
        """The first 8 bytes of the uuid: what references carry."""
        return self.uuid.bytes[:8]

    def origin_of(self, job_id: int) -> UUID:
        """Return what the idempotency keys of a row's job begin with: they outlive a move of the database.

        A job that was enqueued before may have called somebody already. A later one has a number that the original,
        if this is a copy beside it, gives to another job, so it needs another key.
        """
        return next((uuid for last, uuid in self.former if job_id <= last), self.uuid)


def install(cur: Cursor) -> Database:
    """Create or upgrade tables, indexes and settings as needed, and return the database; the caller commits.

    An upgrade waits up to 10 s for the tables, then the driver raises 55P03: stop the workers and repeat it.

    Raises:
        SchemaMismatch: The tables are there, of a newer release or of one that cannot be upgraded.
    """
    cur.execute("SELECT pg_advisory_xact_lock(%(lock)s::bigint)", {"lock": _INSTALL_LOCK})
    if not installed(cur):
        cur.execute(_text("schema.sql"))
        cur.execute(_INSTALL, {"version": SCHEMA_VERSION})
    else:
        _upgrade(cur)
    return identify(cur, allow_copy=True)


def _upgrade(cur: Cursor) -> None:
    cur.execute(_VERSION)
    found = cur.fetchone()
    steps = list(range(found[0], SCHEMA_VERSION)) if found is not None else []
    if not steps or not all(step in _UPGRADES for step in steps):
        return  # the version is right, or identify() says what is wrong with it
    cur.execute(_PATIENCE)
    [patience] = cur.fetchone()
    cur.execute(_PATIENTLY, {"timeout": _UPGRADE_PATIENCE})
    for step in steps:
        cur.execute(_text(_UPGRADES[step]))
    cur.execute(_PATIENTLY, {"timeout": patience})


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def adopt(cur: Cursor) -> Database:
    """Give a copied, restored or moved database an identity of its own, so that its open jobs run; the caller commits.

    Jobs that are in it keep their idempotency keys.

    Raises:
        SchemaMismatch: The tables are missing or of another release.
    """
    identify(cur, allow_copy=True)
    cur.execute(_ADOPT)
    return identify(cur)


def identify(cur: Cursor, *, allow_copy: bool = False) -> Database:
    """Return which database this is; the caller's transaction survives a refusal.

    Raises:
        SchemaMismatch: The tables are missing or of another release.
        ForeignDatabase: It is a copy that nobody adopted (unless ``allow_copy``).
    """
    if not installed(cur):
        raise SchemaMismatch("The database has no Sidestream tables (no sidestream_meta); run: sidestream init-db")
    cur.execute(_META)
    found = cur.fetchone()
    if found is None:
        raise SchemaMismatch("The table sidestream_meta is empty, expected one row; restore it from a backup.")
    version, uuid, at_home, former = found
    if version != SCHEMA_VERSION:
        what = "upgrade Sidestream" if version > SCHEMA_VERSION else "to upgrade them, run: sidestream init-db"
        raise SchemaMismatch(f"The Sidestream tables have version {version}, expected {SCHEMA_VERSION}; {what}.")
    if not at_home and not allow_copy:
        raise ForeignDatabase(
            "This database is a copy, or was restored elsewhere: its open jobs may be running at the original. "
            "To cancel them here, run Odoo's neutralize on it; to let them run here, run: sidestream adopt"
        )
    return Database(UUID(uuid), copied=not at_home, former=tuple(_former(one) for one in former.split()))


def _former(word: str) -> tuple[int, UUID]:
    uuid, _, last = word.partition(":")
    return int(last), UUID(uuid)


def installed(cur: Cursor) -> bool:
    """Whether the tables are there, of whatever release."""
    cur.execute(_INSTALLED)
    return bool(cur.fetchone()[0])
