"""A schema of its own for ``sidestream bench``: the same tables beside the real ones, whose rows nobody else ever sees.

Rows in the real table would be published by the workers that serve it. So the bench's connections have a search path
that holds its schema alone, and everything goes with it.
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
"""The schema's comment: what bears it was left by a bench that was killed, and may go."""
_LOCK = tag(SCHEMA, 8)
_FOUND = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %(schema)s"
_MAY = """SELECT has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery(),
                 current_database(), current_user"""
_DROP = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"
_LOCK_TIMEOUT = "SET lock_timeout = '5s'"
_OURS = f"CREATE TABLE {SCHEMA}.business (number integer NOT NULL)"
_WRITE = "INSERT INTO business (number) VALUES (%(number)s)"
_DESCRIBE = """SELECT current_setting('server_version'), current_setting('fsync'),
                      current_setting('synchronous_commit')"""


def url_of(url: str) -> str:
    """Return ``url`` with the bench's schema as the only one that is searched."""
    given = str(conninfo_to_dict(url).get("options") or "")
    return make_conninfo(url, options=f"{given} -c search_path={SCHEMA}".strip())


def make(cur: Cursor) -> None:
    """Make the schema with all our tables in it; the session of ``cur`` (autocommit) keeps other benches out.

    Raises:
        BenchRefused: Another bench is at work here, the role may not make a schema, or one of that name is not ours.
    """
    cur.execute(_MAY)
    may, replica, database, role = cur.fetchone()
    if replica:
        raise BenchRefused(f"The database {database!r} is a replica, which cannot be written to; name its primary.")
    if not lock_tag(cur, _LOCK):
        raise BenchRefused(f"Another sidestream bench is using the database {database!r}; try again when it ended.")
    cur.execute(_FOUND, {"schema": SCHEMA})
    found = cur.fetchone()
    if found is not None and found[0] != MARK:
        raise BenchRefused(
            f"The database {database!r} has a schema {SCHEMA!r} that the bench did not make; rename it, so that the "
            "bench can make its own and remove it."
        )
    if not may:
        raise BenchRefused(
            f"The role {role!r} may not make a schema in the database {database!r}, and the bench writes to no other; "
            f"run: GRANT CREATE ON DATABASE {database} TO {role}"
        )
    cur.execute(_LOCK_TIMEOUT)
    cur.execute(_DROP)
    cur.execute(f"CREATE SCHEMA {SCHEMA}")
    cur.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'")
    cur.execute("SELECT set_config('search_path', %(schema)s, false)", {"schema": SCHEMA})
    schema.install(cur)
    cur.execute(_OURS)


def drop(cur: Cursor) -> None:
    """Remove the schema with all that is in it; the session is the one that made it."""
    cur.execute(_DROP)


def ask(cur: Cursor) -> None:
    """One round trip."""
    cur.execute("SELECT 1")
    cur.fetchone()


def write(cur: Cursor, number: int) -> None:
    """Write a row, as an application would in the transaction that enqueues a job."""
    cur.execute(_WRITE, {"number": number})


def describe(cur: Cursor) -> str:
    """Return the server's version and durability in words."""
    cur.execute(_DESCRIBE)
    version, fsync, commit = cur.fetchone()
    return f"PostgreSQL {version}, fsync {fsync}, synchronous_commit {commit}"
