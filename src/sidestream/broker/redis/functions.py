"""Call the functions in ``lua/`` with typed methods, and turn their codes into errors.

``lua/`` is one Redis function library, which a server loads once; `EVALSHA` would build the helpers in ``lua/shared/``
at every call (docs/decisions/0005). The name of the library contains the digest of its source, so two releases of
Sidestream on one Redis use two libraries. Every function gets the prefix as KEYS[1], the caller's generation number as
ARGV[1] and a test's clock (or '') as ARGV[2]; its header states the rest. Its answer starts with a code.

See https://redis.io/docs/latest/develop/programmability/functions-intro/ and https://redis.io/docs/latest/commands/fcall/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

from sidestream.broker.protocol import Delivery, Lease, Publication
from sidestream.broker.redis.connection import CommandForbidden, FunctionMissing, RedisConnection
from sidestream.broker.redis.rules_wire import pack_rules
from sidestream.errors import BrokerError, BrokerUnsuitable, FormatUnknown, StaleGeneration
from sidestream.job.outcome import Release
from sidestream.job.rules import Rules

CODES: dict[int, tuple[type[BrokerError], str]] = {
    1: (
        StaleGeneration,
        "Redis was emptied or replaced, or has no generation yet; call generation() and publish again.",
    ),
}
"""The errors of the functions' codes; 0 is success."""


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
        """Bind the functions to ``connection`` and ``prefix``; ``clock_ms`` replaces the server's time in tests."""
        self.connection = connection
        self.prefix = prefix
        #: The generation of every call; until it is set, "0" makes them raise StaleGeneration.
        self.generation = "0"
        self._clock_ms = clock_ms

    def begin(self) -> int:
        """Begin a generation if there is none; return its number."""
        return int(self._call("begin")[0])

    def read_generation(self, databases: Sequence[str] = ()) -> tuple[int, frozenset[str]]:
        """Return the number of the generation, and which of the databases (16 hex digits each) are synced in it.

        Raises:
            FormatUnknown: Another release wrote it, in a format that this one does not know.
        """
        number, found, known, *synced = self._call("generation", *databases)
        if int(number) and found != known:
            raise FormatUnknown(
                f"Redis holds contents of format {found.decode() or 'none'}, and this release of Sidestream knows "
                f"format {known.decode()}. Nothing is read or written here until all processes are of one release and "
                "Redis was emptied (FLUSHALL); jobs that have a row are then published again."
            )
        return int(number), frozenset(name for name, is_synced in zip(databases, synced, strict=True) if is_synced)

    def synced(self, database: str) -> None:
        """Mark the database (16 hex digits) as synced."""
        self._call("mark_synced", database)

    def configure(self, database: str, rules: Rules) -> bool:
        """Put rules in force for a database (16 hex digits); return False if these or newer ones are in force."""
        packed = pack_rules(rules)
        digest = sha1(packed, usedforsecurity=False).hexdigest()[:12]
        return bool(self._call("configure", database, rules.version, digest, packed)[0])

    def announce(
        self, worker: str, info: str, ttl_ms: int, lanes: Sequence[str], actions: frozenset[bytes] | None
    ) -> None:
        """Announce a worker, its lanes and the actions that it knows (None: any)."""
        tags = sorted(actions or ())
        digest = "" if actions is None else sha1(b"".join(tags), usedforsecurity=False).hexdigest()
        self._call("announce", worker, info, ttl_ms, digest, len(tags), *tags, *lanes)

    def withdraw(self, worker: str) -> None:
        """Withdraw an announcement."""
        self._call("withdraw", worker)

    def alive(self, worker: str) -> bool:
        """Return whether the worker is announced."""
        return bool(self._call("alive", worker)[0])

    def take_turn(self, task: str, worker: str, hold_ms: int) -> bool:
        """Return whether the worker has the turn for a task, for ``hold_ms``; 0 gives it back."""
        return bool(self._call("take_turn", task, worker, hold_ms)[0])

    def publish(self, jobs: Sequence[Publication], force: bool) -> int:
        """Publish at most a few hundred jobs; return how many were new."""
        return int(self._call("publish", *_published(jobs, force))[0])

    def publish_at_once(self, jobs: Sequence[Publication], seconds: float) -> None:
        """Publish a few jobs as :meth:`RedisConnection.run_at_once` does."""
        command = self._command("publish", *_published(jobs, force=False))
        try:
            reply = self.connection.run_at_once(*command, seconds=seconds)
        except CommandForbidden as error:
            raise self._not_allowed(error) from error
        _answer_of(reply)

    def claim(
        self,
        half_lease: int,
        worker: str,
        free: int,
        prefetch: int,
        wait_ms: int,
        lanes: Sequence[str],
        *,
        received: bytes = b"",
        lost_ms: int = 0,
    ) -> tuple[int, list[bytes]]:
        """Return how many ms to block for a first job (0: not at all), and entry, meta, payload for each delivery.

        ``received``: the last token that the worker received, if the reply to a claim sent ``lost_ms`` ago was lost;
        the jobs leased to the worker since then are returned first.
        """
        block, words = self._call("claim", half_lease, worker, free, prefetch, wait_ms, received, lost_ms, *lanes)
        return block, words

    def renew(self, half_lease: int, leases: Sequence[Lease]) -> list[int]:
        """Return the positions (from 1) of the leases that were lost."""
        return self._call("renew", half_lease, *(lease.entry for lease in leases))

    def settle(self, by_lane: Mapping[str, Sequence[bytes]]) -> list[int]:
        """Settle entries by lane; return the positions (from 1, over all lanes) of those whose leases were lost."""
        sections = (word for lane, entries in by_lane.items() for word in (lane, len(entries), *entries))
        return self._call("settle", *sections)

    def release(self, delivery: Delivery, release: Release) -> int:
        """Return the releases counted so far, or -1 if the lease was lost."""
        reply = self._call(
            "release",
            delivery.lease.entry,
            delivery.lane,
            delivery.ready_ms,
            "" if release.delay_ms is None else release.delay_ms,
            "" if release.blocked_by is None else release.blocked_by,
            int(release.charge_attempt),
            int(release.charge_crash),
            int(release.count),
            int(release.unstarted),
        )
        return int(reply[0])

    def fail(self, delivery: Delivery, error: str) -> bool:
        """Return False if the lease was lost."""
        return bool(self._call("fail", delivery.lease.entry, delivery.lane, error)[0])

    def retry_failed(self, uuids: Sequence[bytes]) -> int:
        """Make failed direct jobs pending; return how many."""
        return int(self._call("retry_failed", *uuids)[0])

    def delete_failed(self, uuids: Sequence[bytes]) -> int:
        """Delete failed direct jobs; return how many there were."""
        return int(self._call("delete_failed", *uuids)[0])

    def reclaim(
        self, worker: str, lease_ms: int, grace_ms: int, lanes: Sequence[str]
    ) -> tuple[bool, list[tuple[bytes, bytes, bytes, int, bytes]]]:
        """Return whether there may be more, and (entry, meta, payload, deliveries, old worker) of each job."""
        more, *found = self._call("reclaim", worker, lease_ms, grace_ms, *lanes)
        return bool(more), found

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[tuple[int, bytes]]:
        """Return (position from 1, entry) of each delivery that the worker holds again."""
        words: list[Any] = [worker]
        for reference, lane, _, ready_ms, payload, attempts, crashes, releases, priority in deliveries:
            words += (reference, lane, priority, ready_ms, payload or b"", attempts, crashes, releases)
        return [(position, entry) for position, entry in self._call("reassert", *words)]

    def published(self, database: bytes, chunk: int) -> bytes:
        """Return the published bits of one chunk."""
        bitmap: bytes = self._call("published", database, chunk)[0]
        return bitmap

    def locate(self, jobs: Sequence[Publication]) -> list[int]:
        """Return for each job a place number (``lua/shared/find.lua``) and the ms until which it is delayed, or 0."""
        words: list[Any] = []
        for job in jobs:
            words += (job.reference, job.lane, job.priority)
        return self._call("locate", *words)

    def explain(self, job: Publication) -> tuple[int, bytes, int, int, bytes, list[bytes]]:
        """Return place number, scope, until (ms), rank, worker and holders (``lua/explain.lua``)."""
        place, scope, until, rank, worker, *holders = self._call("explain", job.reference, job.lane, job.priority)
        return place, scope, until, rank, worker, holders

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """Return whether the waiting job has the new priority."""
        return bool(self._call("reprioritize", job.reference, job.lane, job.priority, priority)[0])

    def discard(self, job: Publication) -> bool:
        """Return whether the waiting job was removed."""
        return bool(self._call("discard", job.reference, job.lane, job.priority)[0])

    def quarantine(self, found: Sequence[bytes]) -> None:
        """Put foreign bytes into quarantine."""
        self._call("quarantine", *found)

    def _call(self, name: str, *words: Any) -> list[Any]:
        command = self._command(name, *words)
        try:
            try:
                reply = self.connection.run(*command)
            except FunctionMissing:
                self.connection.run("FUNCTION", "LOAD", "REPLACE", library().source)
                reply = self.connection.run(*command)
        except CommandForbidden as error:
            raise self._not_allowed(error) from error
        return _answer_of(reply)

    def _not_allowed(self, error: CommandForbidden) -> BrokerUnsuitable:
        """Return an error that names the forbidden command; Redis names only the line where it stopped."""
        found = re.search(r"the '([^']+)' command", str(error))
        line = re.search(r"@user_function:\s*(\d+)", str(error))
        commands = [found[1].upper()] if found else _commands_at(int(line[1])) if line else []
        lacks = " or ".join(commands) or "a command"
        grant = " ".join(f"+{command.lower()}" for command in commands) or "it"
        return BrokerUnsuitable(
            f"Redis at {self.connection.url} does not let this user run {lacks}, which a function of Sidestream needs; "
            f"grant {grant} with ACL SETUSER (docs/howto/worker.md has the whole line). The server said: {error}"
        )

    def _command(self, name: str, *words: Any) -> tuple[Any, ...]:
        now = "" if self._clock_ms is None else self._clock_ms()
        return ("FCALL", library().prefix + name, 1, self.prefix, self.generation, now, *words)


def _commands_at(line: int) -> list[str]:
    """Return the commands that a line of the library runs."""
    lines = library().source.splitlines()
    return sorted(set(re.findall(r"\bcall\('([A-Z]+)'", lines[line - 1]))) if line <= len(lines) else []


def _answer_of(reply: list[Any]) -> list[Any]:
    code: int = reply[0]
    if code:
        kind, sentence = CODES[code]
        raise kind(sentence)
    return reply[1:]


def _published(jobs: Sequence[Publication], force: bool) -> Iterator[Any]:
    """Return the arguments of ``publish`` after its clock."""
    by_lane: dict[str, list[Any]] = {}
    for reference, lane, due_ms, payload, attempted, priority, edited, withdrawn in jobs:
        words = by_lane.get(lane)
        if words is None:
            words = by_lane[lane] = []
        words += (reference, priority, due_ms, _mode(attempted, edited, withdrawn), payload or b"")
    yield int(force)
    for lane, words in by_lane.items():
        yield lane
        yield len(words) // 5
        yield from words


def _mode(attempted: bool, edited: bool, withdrawn: bool) -> str:
    """Return the mode of a publication, as ``lua/publish.lua`` lists them."""
    if withdrawn:
        return "withdrawn"
    if edited:
        return "edited_attempted" if attempted else "edited"
    return "attempted" if attempted else "new"
