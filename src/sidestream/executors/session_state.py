"""Which statements leave something in the session that a rollback or commit does not take away.

A child's connection to the database is kept from job to job. Odoo's own pool resets a connection whenever it is
borrowed; here the connection is given up after a job that used such a statement (see
:class:`~sidestream.executors.odoo.session.OdooSession` and :class:`~sidestream.executors.session.Session`), so that all
others pay nothing but this look.

What is not told apart is taken for such a statement: the price is one new connection. Not seen is what a function or
a DO block does inside the server, and what goes past the cursor's ``execute``.
"""

from __future__ import annotations

import re
from typing import Any

_OF_THE_ORM = ('SELECT "', 'UPDATE "', 'INSERT INTO "', 'DELETE FROM "')
_LONG = 500
"""Characters from which a statement that begins as the ORM's do is not searched: nobody writes such a one by hand."""
_USUAL = frozenset({"SELECT", "UPDATE", "INSERT", "DELETE", "SAVEPO", "RELEAS", "ROLLBA"})
"""How the statements begin that leave something only through a function that they call."""
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_LEAVES = re.compile(
    r"""
    SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)
    | (?:LISTEN|LOAD|DISCARD)\b
    | PREPARE\s+(?!TRANSACTION\b)
    | DECLARE\b.*\bWITH\s+HOLD\b
    | CREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\b(?!.*\bON\s+COMMIT\s+DROP\b)
    | CREATE\b.*\bPG_TEMP\b
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_SESSION_LOCK = re.compile(r"\bPG_(?:TRY_)?ADVISORY_LOCK(?:_SHARED)?\b", re.IGNORECASE)
_SET_CONFIG = re.compile(r"\bSET_CONFIG\s*\(", re.IGNORECASE)
_SET_CONFIG_LOCALLY = re.compile(r"\bSET_CONFIG\s*\([^()]*,\s*TRUE\s*\)", re.IGNORECASE)


def leaves_state(query: Any, cursor: Any = None) -> bool:
    """Whether ``query`` may leave something behind in its session; ``cursor`` reads what is composed of ``sql``."""
    text = query if query.__class__ is str else _text(query, cursor)
    if ";" not in text:
        if text.startswith(_OF_THE_ORM):
            if len(text) > _LONG:
                return False
        elif text.lstrip()[:6].upper() not in _USUAL:
            return _look(text)
        if not ("advisory_lock" in text or "set_config" in text or "ADVISORY_LOCK" in text or "SET_CONFIG" in text):
            return False
    return _look(text)


def _look(text: str) -> bool:
    """Look at each statement. A semicolon inside a literal only means that its rest is looked at too."""
    if any(_LEAVES.match(statement.strip()) for statement in _COMMENT.sub(" ", text).split(";")):
        return True
    if _SESSION_LOCK.search(text):
        return True
    return len(_SET_CONFIG.findall(text)) > len(_SET_CONFIG_LOCALLY.findall(text))


def _text(query: Any, cursor: Any) -> str:
    code = getattr(query, "code", None)  # Odoo's SQL
    if isinstance(code, str):
        return code
    if isinstance(query, bytes):
        return query.decode("latin-1")
    if hasattr(query, "as_string"):
        query = query.as_string(getattr(cursor, "_obj", cursor))  # psycopg2's cursor below Odoo's, or psycopg's own
    return str(query)
