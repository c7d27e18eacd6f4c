"""Install, upgrade and check the tables, and say which database this is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from uuid import UUID

from sidestream.errors import ForeignDatabase, SchemaMismatch
from sidestream.store.cursor import Cursor

SCHEMA_VERSION = 1
"""Version of the tables that this release makes."""
OLDEST_SCHEMA = 1
"""The oldest version that this release can use. Newer tables say whether it can (sidestream_meta.usable_from)."""

UPGRADES: dict[int, str] = {}
"""SQL that makes each version from the one before; it sets ``usable_from`` where older releases cannot go on."""

# A number of our own (the letters "sidestrm"), so that two installers of one database wait for each other.
_INSTALL_LOCK = 0x73696465_7374726D

# to_regclass answers NULL where naming a missing table would fail, and with it the caller's transaction.
_INSTALLED = "SELECT to_regclass('sidestream_meta') IS NOT NULL"
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-CONTROL-SYSTEM
_HOME = """(SELECT system_identifier || '/' || d.oid FROM pg_control_system(), pg_database d
            WHERE d.datname = current_database())"""
# ruff: noqa: S608  (made of this room's own constants)
# "usable_from" by way of JSON, because tables of before the first release have no such column and are to be refused.
_META = f"""SELECT version, (to_jsonb(m) ->> 'usable_from')::integer, database_uuid::text, home = {_HOME}, former
    FROM sidestream_meta m"""
_UPGRADED = "UPDATE sidestream_meta SET version = %(version)s::integer"
_COLUMNS = """SELECT attrelid::regclass::text, attname FROM pg_attribute
    WHERE attrelid = ANY (ARRAY(SELECT to_regclass(name) FROM unnest(%(tables)s::text[]) name))
    AND attnum > 0 AND NOT attisdropped"""
_INSTANCE = "SELECT instance FROM sidestream_meta"
_SETTLE = f"UPDATE sidestream_meta SET home = {_HOME}, instance = %(instance)s::text"
_INSTALL = f"INSERT INTO sidestream_meta (version, home) SELECT %(version)s::integer, {_HOME}"
_ADOPT = f"""
    UPDATE sidestream_meta SET database_uuid = gen_random_uuid(), home = {_HOME}, instance = %(instance)s::text,
        former = ltrim(former || ' ' || database_uuid || ':' || (SELECT coalesce(max(id), 0) FROM sidestream_job))"""


@dataclass(frozen=True, slots=True)
class Database:
    """Which database the rows are in."""

    #: Made at installation.
    uuid: UUID
    #: Of the tables.
    version: int = field(default=SCHEMA_VERSION, compare=False)
    #: The operator's name for the installation, as :func:`check` found it.
    instance: str | None = None
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
    """Create tables, indexes and settings unless they are there, and return the database; the caller commits.

    Raises:
        SchemaMismatch: The tables are there, of a release that this one does not go with.
    """
    cur.execute("SELECT pg_advisory_xact_lock(%(lock)s::bigint)", {"lock": _INSTALL_LOCK})
    if not installed(cur):
        cur.execute(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
        cur.execute(_INSTALL, {"version": SCHEMA_VERSION})
    return identify(cur, allow_copy=True)


def upgrade(cur: Cursor) -> tuple[int, int]:
    """Upgrade the tables to this release's version, and return the versions before and after; the caller commits.

    Raises:
        SchemaMismatch: The tables are missing, or of a release that this one cannot use.
    """
    cur.execute("SELECT pg_advisory_xact_lock(%(lock)s::bigint)", {"lock": _INSTALL_LOCK})
    before = after = identify(cur, allow_copy=True).version
    while after < SCHEMA_VERSION:
        after += 1
        cur.execute(UPGRADES[after])
        cur.execute(_UPGRADED, {"version": after})
    return before, after


def check(cur: Cursor, instance: str | None) -> Database:
    """Return the database if a worker of ``instance`` could run its jobs; nothing is changed.

    Raises:
        SchemaMismatch: The tables or some of their columns are missing, or they are of another release.
        ForeignDatabase: It is a copy that nobody adopted, or belongs to another instance.
    """
    cur.execute("SAVEPOINT sidestream_check")
    found = settle_in(cur, instance)
    cur.execute("ROLLBACK TO SAVEPOINT sidestream_check")
    cur.execute(_INSTANCE)
    [named] = cur.fetchone()
    wanted = set(_declared_columns())
    cur.execute(_COLUMNS, {"tables": sorted({table for table, _ in wanted})})
    missing = sorted(f"{table}.{column}" for table, column in wanted - {(row[0], row[1]) for row in cur.fetchall()})
    if missing and found.version >= SCHEMA_VERSION:
        raise SchemaMismatch(
            f"The Sidestream tables have version {found.version} but lack {', '.join(missing)}; restore them from a "
            "backup, or create them in an empty database: sidestream db init"
        )
    return replace(found, instance=named)


def _declared_columns() -> Iterator[tuple[str, str]]:
    """Return the (table, column) pairs that ``schema.sql`` declares."""
    text = files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    for table, body in re.findall(r"^CREATE TABLE (\w+) \($(.*?)^\);$", text, re.MULTILINE | re.DOTALL):
        for column in re.findall(r"^    ([a-z_]+) ", body, re.MULTILINE):
            yield table, column


def adopt(cur: Cursor, instance: str | None = None) -> Database:
    """Give a copied, restored or moved database an identity of its own, so that its jobs run; the caller commits.

    Jobs that are in it keep their idempotency keys.

    Args:
        cur: On the database.
        instance: The operator's name for this installation from now on; None: none.

    Raises:
        SchemaMismatch: The tables are missing or of another release.
    """
    identify(cur, allow_copy=True)
    cur.execute(_ADOPT, {"instance": instance})
    return identify(cur)


def settle_in(cur: Cursor, instance: str | None) -> Database:
    """Return which database this is if a worker of ``instance`` may run its jobs; the caller commits.

    The operator's name decides where the database has one: its home changes with pg_upgrade and is noted anew, and a
    physical copy has the original's. A database without a name is given that of its first worker.

    Args:
        cur: On the database.
        instance: The operator's name for this installation; None: it has none.

    Raises:
        SchemaMismatch: The tables are missing or of another release.
        ForeignDatabase: It is a copy that nobody adopted, or belongs to another instance.
    """
    found = identify(cur, allow_copy=True)
    cur.execute(_INSTANCE)
    [named] = cur.fetchone()
    if named is None:
        identify(cur)
        if instance is not None:
            cur.execute(_SETTLE, {"instance": instance})
    elif named != instance:
        ours = "has no name (SIDESTREAM_INSTANCE)" if instance is None else f"is of the instance {instance!r}"
        raise ForeignDatabase(
            f"This database belongs to the instance {named!r}, and this worker {ours}: if it is a copy, its jobs "
            "may be running at the original. To cancel them here, run Odoo's neutralize on it; to let them run here, "
            f"run: sidestream db adopt; if it is the original, set SIDESTREAM_INSTANCE={named}"
        )
    elif found.copied:
        cur.execute(_SETTLE, {"instance": instance})
    return identify(cur)


def identify(cur: Cursor, *, allow_copy: bool = False) -> Database:
    """Return which database this is; the caller's transaction survives a refusal.

    Raises:
        SchemaMismatch: The tables are missing, or of a release that this one does not go with.
        ForeignDatabase: It is a copy that nobody adopted (unless ``allow_copy``).
    """
    if not installed(cur):
        raise SchemaMismatch("The database has no Sidestream tables (no sidestream_meta); run: sidestream db init")
    cur.execute(_META)
    found = cur.fetchone()
    if found is None:
        raise SchemaMismatch("The table sidestream_meta is empty, expected one row; restore it from a backup.")
    version, usable_from, uuid, at_home, former = found
    if usable_from is None or version < OLDEST_SCHEMA:
        raise SchemaMismatch(
            f"The Sidestream tables have version {version} of a release that this one cannot use, expected version "
            f"{OLDEST_SCHEMA} to {SCHEMA_VERSION}; make them anew in an empty database: sidestream db init"
        )
    if usable_from > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"The Sidestream tables have version {version}, which releases for version {usable_from} and later can "
            f"use; this one is for version {SCHEMA_VERSION}: upgrade Sidestream."
        )
    if not at_home and not allow_copy:
        raise ForeignDatabase(
            "This database is a copy, or was restored elsewhere: its pending jobs may be running at the original. "
            "To cancel them here, run Odoo's neutralize on it; to let them run here, run: sidestream db adopt"
        )
    return Database(
        UUID(uuid), version=version, copied=not at_home, former=tuple(_former(one) for one in former.split())
    )


def _former(word: str) -> tuple[int, UUID]:
    uuid, _, last = word.partition(":")
    return int(last), UUID(uuid)


def installed(cur: Cursor) -> bool:
    """Whether the tables are there, of whatever release."""
    cur.execute(_INSTALLED)
    return bool(cur.fetchone()[0])
