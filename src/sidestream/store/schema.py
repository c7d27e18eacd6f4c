"""Install, upgrade and check the tables, and identify the database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from uuid import UUID

from sidestream.errors import ForeignDatabase, SchemaMismatch
from sidestream.store.cursor import Cursor, fetch_one, fetch_value

SCHEMA_VERSION = 1
"""Version of the tables that this release creates."""
OLDEST_SCHEMA = 1
"""The oldest version that this release can use. Newer tables say whether it can (sidestream_meta.usable_from)."""

UPGRADES: dict[int, str] = {}
"""SQL that makes each version from the one before; it sets ``usable_from`` where older releases cannot go on."""

# A number of our own (the letters "sidestrm"), so that two installers of one database wait for each other.
_INSTALL_LOCK = 0x73696465_7374726D

# Returns whether the tables exist. to_regclass returns NULL for a missing table, which keeps the caller's transaction.
_INSTALLED = "SELECT to_regclass('sidestream_meta') IS NOT NULL"
# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-CONTROL-SYSTEM
_HOME = """(SELECT system_identifier || '/' || d.oid FROM pg_control_system(), pg_database d
            WHERE d.datname = current_database())"""
# ruff: noqa: S608  (made of this package's constants)
# Returns the one row. "usable_from" is read through JSON, because tables from before the first release do not have it.
_META = f"""
    SELECT version, (to_jsonb(m) ->> 'usable_from')::integer AS usable_from, database_uuid::text AS uuid,
           home = {_HOME} AS at_home, instance, former
    FROM sidestream_meta m"""
_UPGRADED = "UPDATE sidestream_meta SET version = %(version)s::integer"
# Returns the (table, column) pairs of these tables that exist.
_COLUMNS = """SELECT attrelid::regclass::text, attname FROM pg_attribute
    WHERE attrelid = ANY (ARRAY(SELECT to_regclass(name) FROM unnest(%(tables)s::text[]) name))
    AND attnum > 0 AND NOT attisdropped"""
# Writes where the database is now, and its name.
_SETTLE = f"UPDATE sidestream_meta SET home = {_HOME}, instance = %(instance)s::text"
# Writes the one row.
_INSTALL = f"INSERT INTO sidestream_meta (version, home) SELECT %(version)s::integer, {_HOME}"
# Gives the database a new identity and appends the old one to "former".
_ADOPT = f"""
    UPDATE sidestream_meta SET database_uuid = gen_random_uuid(), home = {_HOME}, instance = %(instance)s::text,
        former = ltrim(former || ' ' || database_uuid || ':' || (SELECT coalesce(max(id), 0) FROM sidestream_job))"""


@dataclass(frozen=True, slots=True)
class Database:
    """The identity of a database."""

    #: Created at installation.
    uuid: UUID
    #: Of the tables.
    version: int = field(default=SCHEMA_VERSION, compare=False)
    #: The operator's name for the installation.
    instance: str | None = field(default=None, compare=False)
    #: It is a copy, or was restored elsewhere, and nobody adopted it yet: none of its jobs may run.
    copied: bool = False
    #: For each adoption, oldest first: the last job before it, and the uuid until then.
    former: tuple[tuple[int, UUID], ...] = ()

    def __str__(self) -> str:
        return f"{self.uuid}" + (f" of the instance {self.instance!r}" if self.instance else "")

    @property
    def tag(self) -> bytes:
        """The first 8 bytes of the uuid: what references carry."""
        return self.uuid.bytes[:8]

    def origin_of(self, job_id: int) -> UUID:
        """Return the uuid that the job's idempotency keys begin with.

        A job that was enqueued before an adoption may have called a service already. The id of a later job may
        belong to another job in the original, if this is a copy of it, so a later job needs another key.
        """
        return next((uuid for last, uuid in self.former if job_id <= last), self.uuid)


def install(cur: Cursor, instance: str | None = None) -> Database:
    """Create the tables and indexes unless they exist; return the database. The caller commits.

    A given ``instance``, the operator's name for this installation, is recorded as :func:`settle_in` does it.

    Raises:
        SchemaMismatch: The tables exist, but this release cannot use them.
        ForeignDatabase: It belongs to another instance, or a name is given and it is a copy.
    """
    cur.execute("SELECT pg_advisory_xact_lock(%(lock)s::bigint)", {"lock": _INSTALL_LOCK})
    if not installed(cur):
        cur.execute(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8"))
        cur.execute(_INSTALL, {"version": SCHEMA_VERSION})
    return identify(cur, allow_copy=True) if instance is None else settle_in(cur, instance)


def upgrade(cur: Cursor) -> tuple[int, int]:
    """Upgrade the tables; return the versions before and after. The caller commits.

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
    settle_in(cur, instance)
    cur.execute("ROLLBACK TO SAVEPOINT sidestream_check")
    found = identify(cur, allow_copy=True)
    wanted = set(_declared_columns())
    cur.execute(_COLUMNS, {"tables": sorted({table for table, _ in wanted})})
    missing = sorted(f"{table}.{column}" for table, column in wanted - set(cur.fetchall()))
    if missing and found.version >= SCHEMA_VERSION:
        raise SchemaMismatch(
            f"The Sidestream tables have version {found.version} but lack {', '.join(missing)}; restore them from a "
            "backup, or create them in an empty database: sidestream db init"
        )
    return found


def _declared_columns() -> Iterator[tuple[str, str]]:
    """Return the (table, column) pairs that ``schema.sql`` declares."""
    text = files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    for table, body in re.findall(r"^CREATE TABLE (\w+) \($(.*?)^\);$", text, re.MULTILINE | re.DOTALL):
        for column in re.findall(r"^    ([a-z_]+) ", body, re.MULTILINE):
            yield table, column


def adopt(cur: Cursor, instance: str | None = None) -> Database:
    """Give a copied or moved database a new identity, so that its jobs run; the caller commits.

    Existing jobs keep their idempotency keys.

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
    """Return the database if a worker of ``instance`` may run its jobs; the caller commits.

    If the database has an operator's name, the name decides: the home changes with pg_upgrade and is then updated, and
    a physical copy has the original's home. A database without a name gets the name of its first worker.

    Args:
        cur: On the database.
        instance: The operator's name for this installation; None: it has none.

    Raises:
        SchemaMismatch: The tables are missing or of another release.
        ForeignDatabase: It is a copy that nobody adopted, or belongs to another instance.
    """
    found = identify(cur, allow_copy=True)
    named = found.instance
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
    """Return the identity of the database; the caller's transaction survives a refusal.

    Raises:
        SchemaMismatch: The tables are missing, or this release cannot use them.
        ForeignDatabase: It is a copy that nobody adopted (unless ``allow_copy``).
    """
    if not installed(cur):
        raise SchemaMismatch("The database has no Sidestream tables (no sidestream_meta); run: sidestream db init")
    cur.execute(_META)
    meta = fetch_one(cur)
    if meta is None:
        raise SchemaMismatch("The table sidestream_meta is empty, expected one row; restore it from a backup.")
    if meta.usable_from is None or meta.version < OLDEST_SCHEMA:
        raise SchemaMismatch(
            f"The Sidestream tables have version {meta.version} of a release that this one cannot use, expected "
            f"version {OLDEST_SCHEMA} to {SCHEMA_VERSION}; make them anew in an empty database: sidestream db init"
        )
    if meta.usable_from > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"The Sidestream tables have version {meta.version}, which releases for version {meta.usable_from} and "
            f"later can use; this one is for version {SCHEMA_VERSION}: upgrade Sidestream."
        )
    if not meta.at_home and not allow_copy:
        raise ForeignDatabase(
            "This database is a copy, or was restored elsewhere: its pending jobs may be running at the original. "
            "To cancel them here, run Odoo's neutralize on it; to let them run here, run: sidestream db adopt"
        )
    former = tuple((int(last), UUID(uuid)) for uuid, _, last in (one.partition(":") for one in meta.former.split()))
    return Database(UUID(meta.uuid), meta.version, meta.instance, copied=not meta.at_home, former=former)


def installed(cur: Cursor) -> bool:
    """Return whether the tables exist, of any release."""
    cur.execute(_INSTALLED)
    return bool(fetch_value(cur))
