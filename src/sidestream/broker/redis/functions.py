"""Call the functions in ``lua/``, and turn their codes into errors.

``lua/`` is one Redis function library, which a server loads once; `EVALSHA` would build the helpers in ``lua/shared/``
at every call (docs/decisions/0005). The name of the library contains the digest of its source, so two releases of
Sidestream on one Redis use two libraries. Every function gets the prefix as KEYS[1], the caller's generation number as
ARGV[1] and a test's clock (or '') as ARGV[2]; its header states the rest. Its answer starts with a code: 0,
or 1 for a stale generation.

See https://redis.io/docs/latest/develop/programmability/functions-intro/ and https://redis.io/docs/latest/commands/fcall/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

from sidestream.broker.redis.connection import CommandForbidden, FunctionMissing, RedisConnection
from sidestream.errors import BrokerUnsuitable, StaleGeneration

SHARED = (
    "core",
    "heartbeat",
    "reference",
    "published_bits",
    "attempts",
    "rules",
    "pool",
    "places",
    "limits",
    "parked",
    "keyed",
    "lease",
    "pick",
    "handoff",
    "promote",
    "find",
    "remove_waiting",
    "forget",
)
"""The files of ``lua/shared/``, each after those that it calls."""


class Library(NamedTuple):
    """The function library as it is loaded."""

    source: str
    #: The start of the name of each function.
    prefix: str


@cache
def library() -> Library:
    """Return the files of ``lua/`` as one library."""
    folder = files(__package__) / "lua"
    parts = [(folder / "shared" / f"{name}.lua").read_text() for name in SHARED]
    for name in functions():
        body = (folder / f"{name}.lua").read_text()
        flags = next(line for line in body.splitlines() if line.startswith("-- Flags ")).split()[2]
        listed = "" if flags == "none" else f"'{flags}'"
        parts.append(
            f"redis.register_function{{function_name = '@{name}', flags = {{{listed}}},\n"
            f"callback = function(keys, argv)\nbegin_call(keys, argv)\n{body}end}}\n"
        )
    body = "\n".join(parts)
    prefix = f"sidestream_{sha1(body.encode(), usedforsecurity=False).hexdigest()[:12]}"
    return Library(f"#!lua name={prefix}\n{body}".replace("'@", f"'{prefix}_"), f"{prefix}_")


@cache
def functions() -> tuple[str, ...]:
    """Return the sorted names of the functions, one per file of ``lua/``."""
    names = (entry.name for entry in (files(__package__) / "lua").iterdir())
    return tuple(sorted(name.removesuffix(".lua") for name in names if name.endswith(".lua")))


class Functions:
    """Calls the functions of one shard with one generation number."""

    def __init__(self, connection: RedisConnection, prefix: str, clock_ms: Callable[[], int] | None = None) -> None:
        """Bind the functions to a connection and a prefix; tests replace the time by ``clock_ms``."""
        self._connection = connection
        self._prefix = prefix
        self._clock_ms = clock_ms
        #: The generation of every call; until it is set, "0" makes them raise StaleGeneration.
        self.generation = "0"

    def call(self, name: str, *words: Any) -> list[Any]:
        """Call a function with the arguments of its header, and return its answer without the code.

        Raises:
            StaleGeneration: Redis was emptied or replaced since the generation was read.
            BrokerError: Another kind of it; see :meth:`RedisConnection.run`.
        """
        command = self._command(name, *words)
        try:
            try:
                reply = self._connection.run(*command)
            except FunctionMissing:
                self._connection.run("FUNCTION", "LOAD", "REPLACE", library().source)
                reply = self._connection.run(*command)
        except CommandForbidden as error:
            raise self._not_allowed(error) from error
        return _answer_of(reply)

    def call_at_once(self, name: str, *words: Any, seconds: float) -> list[Any]:
        """Do as :meth:`call` over the open connection, without loading the library."""
        try:
            reply = self._connection.run_at_once(*self._command(name, *words), seconds=seconds)
        except CommandForbidden as error:
            raise self._not_allowed(error) from error
        return _answer_of(reply)

    def _not_allowed(self, error: CommandForbidden) -> BrokerUnsuitable:
        """Return an error that names the forbidden command, which Redis does not name."""
        found = re.search(r"the '([^']+)' command", str(error))
        line = re.search(r"@user_function:\s*(\d+)", str(error))
        commands = [found[1].upper()] if found else _commands_at(int(line[1])) if line else []
        lacks = " or ".join(commands) or "a command"
        grant = " ".join(f"+{command.lower()}" for command in commands) or "it"
        return BrokerUnsuitable(
            f"Redis at {self._connection.url} does not let this user run {lacks}, which a function of Sidestream "
            f"needs; grant {grant} with ACL SETUSER (docs/howto/worker.md has the whole line). The server said: {error}"
        )

    def _command(self, name: str, *words: Any) -> tuple[Any, ...]:
        now = "" if self._clock_ms is None else self._clock_ms()
        return ("FCALL", library().prefix + name, 1, self._prefix, self.generation, now, *words)


def _commands_at(line: int) -> list[str]:
    """Return the commands that a line of the library runs."""
    lines = library().source.splitlines()
    return sorted(set(re.findall(r"\bcall\('([A-Z]+)'", lines[line - 1]))) if line <= len(lines) else []


def _answer_of(reply: list[Any]) -> list[Any]:
    code, *answer = reply
    if code:
        raise StaleGeneration(
            "Redis was emptied or replaced, or has no generation yet; call generation(), then repeat."
        )
    return answer
