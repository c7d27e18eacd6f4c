"""The one place that tells database errors apart, by SQLSTATE, and that opens connections.

psycopg 3 calls the code ``sqlstate``, psycopg2 ``pgcode``; neither has one when the server was never reached or went
away without a word. The codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sidestream.errors import SchemaMismatch, SettingsError, StoreError, StoreUnavailable

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
LOCK_NOT_AVAILABLE = "55P03"
UNDEFINED_TABLE = "42P01"
INSUFFICIENT_PRIVILEGE = "42501"
CONFLICTS = frozenset({SERIALIZATION_FAILURE, DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE})
"""PostgreSQL asks for another try of the same transaction."""

ADMIN_SHUTDOWN = "57P01"
CRASH_SHUTDOWN = "57P02"
SESSION_ENDS = frozenset({ADMIN_SHUTDOWN, CRASH_SHUTDOWN})
"""PostgreSQL ends a session: a person or a shutdown wants it, or another server process crashed."""

# Connection exceptions, wrong password or role, missing database, no resources, shut down or terminated by an
# administrator, an error in the system below PostgreSQL.
_UNAVAILABLE_CLASSES = ("08", "28", "3D", "53", "58")
_UNAVAILABLE = frozenset({*SESSION_ENDS, "57P03", "57P05", "25P03", "25P04", "25006"})
# Undefined table, column, function: our tables are gone or of another release.
_MISMATCH = frozenset({"42P01", "42703", "42883"})
# Both drivers raise these, without a code, for a server that is not there or a connection that is closed.
_DRIVER_LOST = frozenset({"OperationalError", "InterfaceError"})

NAME_LIMIT = 63
"""Longest application name in bytes: PostgreSQL cuts the rest off, and then no session is found by its name."""
CONNECT_TIMEOUT = 5
"""Seconds that a connection attempt may take, for each address."""
_KEEPALIVE = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
# Through options, because Odoo's pool wipes what SET did. The backend of a vanished client notices within a second on
# this host, and within 11 s when the client's host lost its power: a lock does not outlive its worker.
_OPTIONS = {
    "client_connection_check_interval": "1000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "jit": "off",  # our statements are short: compiling one takes longer than running it
}

# Whatever the server, its role, its database or the operator's own options say: a job may take its time between two
# statements, and one whose session is ended for that would call others again and again.
_ALWAYS = ("-c idle_in_transaction_session_timeout=0", "-c idle_session_timeout=0")
_TRANSACTION_TIMEOUT = "-c transaction_timeout=0"
_HAS_TRANSACTION_TIMEOUT = 170_000
"""The first server version that has this option; an older server refuses a session that names it."""
_server_versions: dict[str, int] = {}
"""Version of the server that answered last, by the URL: it has to be known before a session names its options."""

ANSWER = 10.0
"""Seconds after which a worker's own statement is given up, and its connection with it."""
ANSWER_AT_LENGTH = 30.0
"""The same for what looks at many rows at once."""
_SERVER_SHARE = 0.8
"""Share of that time after which the server cancels the statement itself, which keeps the connection."""

_Connection = TypeVar("_Connection", bound="psycopg.Connection[Any]")


def server_options(given: str, version: int) -> str:
    """Return the command-line options of a session, including those of the operator.

    What is given wins over ours, but for the time-outs of a session between two statements, which are always off. For
    a driver that reads them from PGOPTIONS, too. ``version``: of the server (170002 for 17.2), or 0 if it is unknown.
    """
    ours = (f"-c {name}={value}" for name, value in _OPTIONS.items() if name not in given)
    kept = given.strip()
    for option in (_TRANSACTION_TIMEOUT, *reversed(_ALWAYS)):  # they may have been added before
        kept = kept.removesuffix(option).strip()
    newer = [_TRANSACTION_TIMEOUT] if version >= _HAS_TRANSACTION_TIMEOUT else []
    return " ".join([*ours, *([kept] if kept else []), *_ALWAYS, *newer])


def server_version(dsn: str) -> int:
    """Return the version of the last server reached at ``dsn`` (170002 for 17.2), or 0."""
    return _server_versions.get(dsn, 0)


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is dropped if the server or a pooler does not answer in time.

    No setting does this: a server cannot report its timeout, and the peer's kernel acknowledges unread bytes.
    """

    #: Seconds that one exchange may take.
    answer = ANSWER

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Run ``gen``; close the connection and raise OperationalError if that takes too long."""
        try:
            return super().wait(_until(gen, time.monotonic() + self.answer), *args, **options)
        except _Unanswered as error:
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.answer:g} s") from error


class _Unanswered(Exception):
    """The time is over."""


def _until(gen: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
    """Pass on what ``gen`` waits for, and check the deadline several times a second."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise _Unanswered
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


def connect_bounded(dsn: str, application_name: str, *, answer: float = ANSWER) -> psycopg.Connection[Any]:
    """Open an autocommit connection whose statements take at most ``answer`` seconds.

    The server cancels it a little before (unless ``dsn`` sets a statement_timeout), or the connection is dropped.
    """
    connection = connect(
        dsn,
        application_name,
        autocommit=True,
        connection_class=BoundedConnection,
        statement_timeout=answer * _SERVER_SHARE,
    )
    connection.answer = answer
    return connection


def sqlstate(error: BaseException) -> str | None:
    """Return the five-character code of a driver's error, or None when it has none."""
    code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return code if isinstance(code, str) else None


def translate(error: Exception, doing: str, connection: Any = None) -> StoreError:
    """Return the StoreError to raise for a driver's ``error`` on ``connection``; ``doing`` names what failed."""
    if isinstance(error, StoreError):
        return error
    code = sqlstate(error)
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else type(error).__name__
    if code is None:
        names = {cls.__name__ for cls in type(error).__mro__}
        if isinstance(error, OSError) or names & _DRIVER_LOST:
            if refused := re.search(r"FATAL: +(.+)", str(error)):  # the server answered: it runs
                why = refused[1].strip()
                return StoreUnavailable(f"PostgreSQL refuses the connection ({doing}): {why}; {_advice(why)}.")
            return StoreUnavailable(f"PostgreSQL does not answer ({doing}): {said}; check that it runs.")
        return StoreError(f"PostgreSQL was not asked ({doing}): {type(error).__name__}: {said}.")
    if code[:2] in _UNAVAILABLE_CLASSES or code in _UNAVAILABLE:
        return StoreUnavailable(f"PostgreSQL cannot be used ({doing}): {said} (SQLSTATE {code}); it is tried again.")
    if code in _MISMATCH:
        advice = "sidestream db init if there are no tables yet, else sidestream db check"
        return SchemaMismatch(f"The Sidestream tables do not fit ({doing}): {said}; run {advice}.")
    if code == INSUFFICIENT_PRIVILEGE:
        user = getattr(getattr(connection, "info", None), "user", None)
        return StoreError(
            f"The role {f'{user!r}' if user else 'of this connection'} may not do this ({doing}): {said}; connect as "
            "the owner of the tables, or grant it the rights (docs/howto/worker.md, PostgreSQL)."
        )
    return StoreError(f"PostgreSQL refused ({doing}): {said} (SQLSTATE {code}).")


def _advice(refusal: str) -> str:
    """Return the advice for a connection that PostgreSQL refused with this text."""
    if re.match(r"role .* does not exist", refusal):
        return (
            "name a role that exists: postgresql://role@host/database. Where the URL names none, it is the system user "
            "of this process (SIDESTREAM_USER, nobody by default, when root starts a worker)"
        )
    if re.match(r"database .* does not exist", refusal):
        return "create it, or correct the database in the URL"
    if re.search(r"authentication|password|pg_hba|permission", refusal):
        return "correct the role and password in the database URL, or what pg_hba.conf allows it"
    return "try again when PostgreSQL accepts connections"


def connect(
    dsn: str,
    application_name: str,
    *,
    autocommit: bool,
    connection_class: type[_Connection] = psycopg.Connection,  # type: ignore[assignment]
    connect_timeout: int = CONNECT_TIMEOUT,
    statement_timeout: float | None = None,
) -> _Connection:
    """Open a psycopg 3 connection on which both sides detect a lost peer; ``dsn`` has priority.

    ``connect_timeout``: seconds for each address; ``statement_timeout``: seconds after which the server cancels a
    statement. Needs PostgreSQL 14 or later, reached directly or through a pooler in
    session mode that passes ``options`` on. The options of PGOPTIONS are kept. Settings:
    https://www.postgresql.org/docs/current/runtime-config-connection.html

    Raises:
        SettingsError: ``application_name`` is too long, or ``dsn`` cannot be read.
        StoreUnavailable: No server answers, or it refuses the connection.
    """
    if len(application_name.encode()) > NAME_LIMIT:
        raise SettingsError(
            f"The application name {application_name!r} is over {NAME_LIMIT} bytes; use a shorter worker name."
        )
    try:
        wanted = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # Neither the text nor its cause is shown: it may hold a password.
        raise SettingsError("The database URL cannot be read; expected postgresql://user@host:port/database.") from None
    # Named here, options in the URL would hide those of the environment, which libpq reads when there are none.
    given = str(wanted.get("options") or os.environ.get("PGOPTIONS", ""))
    if statement_timeout is not None and "statement_timeout" not in given:
        given = f"-c statement_timeout={round(statement_timeout * 1000)} {given}"
    defaults: dict[str, Any] = {**_KEEPALIVE, "connect_timeout": connect_timeout, "tcp_user_timeout": 10_000}

    def open_for(version: int) -> _Connection:
        own = {"options": server_options(given, version), "application_name": application_name}
        return connection_class.connect(make_conninfo(**{**defaults, **wanted, **own}), autocommit=autocommit)

    known = _server_versions.pop(dsn, 0)  # forgotten if the server refuses: it may be an older one now
    try:
        connection = open_for(known)
        found = _server_versions[dsn] = connection.info.server_version
        if known < _HAS_TRANSACTION_TIMEOUT <= found:
            connection.close()
            connection = open_for(found)
    except psycopg.Error as error:
        if wrong := re.search(r"(invalid (port number|\S+ value|integer value)|could not match \d+).*", str(error)):
            raise SettingsError(f"The database URL cannot be used ({wrong[0]}); correct it.") from None
        raise translate(error, "connecting") from error
    return connection
