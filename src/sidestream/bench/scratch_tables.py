"""A separate PostgreSQL schema for ``sidestream bench``, with its own copy of the tables.

Workers would publish rows in the real table. So the search path of the benchmark's connections contains only its own
schema, and dropping the schema removes everything.
"""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sidestream.errors import BenchRefused
from sidestream.job.names import tag
from sidestream.store import schema
from sidestream.store.cursor import Cursor
from sidestream.store.locks import lock_tag

SCHEMA = "sidestream_bench"
MARK = "Made by sidestream bench, which removes it when it ends."
"""The schema's comment; a schema with it was left by a killed benchmark and may be dropped."""
_LOCK = tag(SCHEMA, 8)
_FOUND = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %(schema)s"
_PRIVILEGES = """SELECT has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery(),
                 current_database(), current_user"""
_DROP = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"
_LOCK_TIMEOUT = "SET lock_timeout = '5s'"
_CREATE_TABLE = f"CREATE TABLE {SCHEMA}.business (number integer NOT NULL)"
_WRITE = "INSERT INTO business (number) VALUES (%(number)s)"
_DESCRIBE = """SELECT current_setting('server_version'), current_setting('fsync'),
                      current_setting('synchronous_commit')"""


def url_of(url: str) -> str:
    """Return ``url`` with the bench's schema as the only one that is searched."""
    given = str(conninfo_to_dict(url).get("options") or "")
    return make_conninfo(url, options=f"{given} -c search_path={SCHEMA}".strip())


def create(cur: Cursor) -> None:
    """Create the schema and its tables; the session of ``cur`` locks out other benchmarks.

    Raises:
        BenchRefused: Another benchmark runs, the role may not create a schema, or another schema has that name.
    """
    cur.execute(_PRIVILEGES)
    may, replica, database, role = cur.fetchone()
    if replica:
        raise BenchRefused(f"The database {database!r} is a read-only replica; use its primary.")
    if not lock_tag(cur, _LOCK):
        raise BenchRefused(f"Another benchmark is using the database {database!r}; try again when it has ended.")
    cur.execute(_FOUND, {"schema": SCHEMA})
    found = cur.fetchone()
    if found is not None and found[0] != MARK:
        raise BenchRefused(
            f"The database {database!r} has a schema {SCHEMA!r} that the benchmark did not create; rename it, so that "
            "the benchmark can create its own."
        )
    if not may:
        raise BenchRefused(
            f"The role {role!r} may not create a schema in the database {database!r}; "
            f"run: GRANT CREATE ON DATABASE {database} TO {role}"
        )
    cur.execute(_LOCK_TIMEOUT)
    cur.execute(_DROP)
    cur.execute(f"CREATE SCHEMA {SCHEMA}")
    cur.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'")
    cur.execute("SELECT set_config('search_path', %(schema)s, false)", {"schema": SCHEMA})
    schema.install(cur)
    cur.execute(_CREATE_TABLE)


def drop(cur: Cursor) -> None:
    """Drop the schema, in the session that created it."""
    cur.execute(_DROP)


def ask(cur: Cursor) -> None:
    """Make one round trip."""
    cur.execute("SELECT 1")
    cur.fetchone()


def write(cur: Cursor, number: int) -> None:
    """Insert a row, as an application would in the transaction that enqueues a job."""
    cur.execute(_WRITE, {"number": number})


def describe(cur: Cursor) -> str:
    """Return the server's version and durability as text."""
    cur.execute(_DESCRIBE)
    version, fsync, commit = cur.fetchone()
    return f"PostgreSQL {version}, fsync {fsync}, synchronous_commit {commit}"
