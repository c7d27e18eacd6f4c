"""Use PostgreSQL as the broker while Redis is unavailable: slower, with the same promises.

The rows themselves are the queue. A claim reads candidates without locks, in READ COMMITTED. The statement that
acquires a row locks it, and the lock is the lease: it ends with the session of its holder. A claim leaves out what this
process holds or has put off; only this process remembers these. Rules are read from their table. Limits hold within
this process (:mod:`~sidestream.broker.postgres.selection`), and count the jobs that it holds from Redis as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psycopg

from sidestream.broker.postgres.selection import Selector
from sidestream.broker.protocol import (
    FALLBACK_PREFIX,
    Capability,
    Delivery,
    Explanation,
    Generation,
    Lease,
    Place,
    Publication,
    Reclaimed,
)
from sidestream.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnsuitable,
    CapabilityMissing,
    StoreError,
    StoreUnavailable,
)
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference, action_of
from sidestream.job.rules import Pause, Rules
from sidestream.job.states import State
from sidestream.store import control, rules, schema
from sidestream.store.adapter import translate
from sidestream.store.candidates import candidates
from sidestream.store.diagnosis import JobDiagnosis, diagnose
from sidestream.store.job_row import JobRow

POLL = 0.2
"""Seconds between two queries while a claim waits; a publication in this process ends the wait at once."""
BLOCKED_PAUSE_MS = 100
"""Milliseconds for which a blocked job is left out here, in case its blocker was still pending at the query."""
FORGET_AFTER = 600.0
"""Seconds after which a job that was put off and not claimed again is forgotten here (it ran elsewhere)."""
RULES_EVERY = 0.5
"""Seconds between two reads of the rules."""
MOST_QUERIES = 5
"""Most queries of one claim, when a limit admits fewer jobs than were found."""


T = TypeVar("T")


@dataclass(slots=True)
class _PutOff:
    until: float
    releases: int


@dataclass(frozen=True, slots=True)
class _Held:
    job: JobRow
    lease: Lease


class PostgresBroker:
    """A broker that claims rows; its leases need no reclaim."""

    capabilities = frozenset({Capability.SHARED, Capability.PRIORITIES, Capability.PAUSES})

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], database: schema.Database) -> None:
        """Serve the rows of ``database``; ``connect`` opens an autocommit connection."""
        self._connect = connect
        self._database = database
        self._connection: psycopg.Connection[Any] | None = None
        self._querying = threading.Lock()
        self._changed = threading.Condition()
        self._held: dict[bytes, _Held] = {}
        self._put_off: dict[int, _PutOff] = {}
        #: Returns what this process holds from another broker; and what the limits counted of it last.
        self._others: Callable[[], Sequence[Delivery]] = tuple
        self._counted: list[tuple[str, bytes]] = []
        self._selector = Selector()
        self._rules_at = float("-inf")
        #: By worker: tags of the actions that it knows; None: all.
        self._known: dict[str, frozenset[bytes] | None] = {}
        self._entries = 0
        self._closed = False

    def count_others(self, held: Callable[[], Sequence[Delivery]]) -> None:
        """Let concurrency limits also count the jobs that ``held`` returns; claim none of them.

        ``held`` is called before each query for jobs.
        """
        self._others = held

    def generation(self, databases: Sequence[bytes] = ()) -> Generation:
        """See :meth:`Broker.generation`; the rows are the contents, so there is only one."""
        self._check()
        own = self._database.tag
        return Generation(1, self._database.uuid.hex, frozenset({own.hex()} if own in databases else ()))

    def begin_generation(self, databases: Sequence[bytes] = ()) -> Generation:
        return self.generation(databases)

    def mark_synced(self, database: bytes) -> None:
        """See :meth:`Broker.mark_synced`; without effect, because all rows are always visible."""
        self._check()

    def configure(self, database: bytes, rules: Rules) -> bool:
        """See :meth:`Broker.configure`; of these rules and the table's, the newer are in force."""
        self._check()
        if database != self._database.tag:
            return False
        with self._changed:
            return self._follow(rules)

    def announce(
        self, worker: str, lanes: Sequence[str], info: str, ttl_ms: int, actions: frozenset[bytes] | None = None
    ) -> None:
        """See :meth:`Broker.announce`; only the actions matter here."""
        self._check()
        with self._changed:
            self._known[worker] = actions
            self._changed.notify_all()

    def withdraw(self, worker: str) -> None:
        self._check()
        with self._changed:
            self._known.pop(worker, None)

    def publish(self, jobs: Sequence[Publication], *, force: bool = False) -> int:
        """See :meth:`Broker.publish`; the rows exist, so this only wakes waiting claims here."""
        self._check()
        if any(Reference.unpack(job.reference).direct for job in jobs):
            raise CapabilityMissing("PostgreSQL carries no direct jobs; they wait until Redis answers again.")
        with self._changed:
            self._changed.notify_all()
        return 0

    def claim(
        self, worker: str, lanes: Sequence[str], *, free: int, prefetch: int = 0, wait_ms: int = 0
    ) -> list[Delivery]:
        """See :meth:`Broker.claim`; another process may claim the same row and then finds it locked."""
        deadline = time.monotonic() + wait_ms / 1000
        ours = self._database.tag.hex()
        queues = {lane.partition(":")[2]: lane for lane in lanes if lane.partition(":")[0] == ours}
        while True:
            self._check()
            found = self._take(worker, queues, free, prefetch) if queues else []
            rest = deadline - time.monotonic()
            if found or rest <= 0 or not free:
                return found
            with self._changed:
                self._changed.wait(min(rest, POLL))

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """See :meth:`Broker.renew`; a row's lock needs no renewal."""
        self._check()
        with self._changed:
            held = {one.lease for one in self._held.values()}
            return [lease for lease in leases if lease.worker != worker or lease not in held]

    def settle(self, deliveries: Sequence[Delivery]) -> list[Lease]:
        self._check()
        with self._changed:
            lost = []
            for delivery in deliveries:
                row_id = self._let_go(delivery)
                if row_id is None:
                    lost.append(delivery.lease)
                else:
                    self._put_off.pop(row_id, None)
            self._changed.notify_all()
            return lost

    def release(self, delivery: Delivery, release: Release) -> int:
        """See :meth:`Broker.release`; the query decides which jobs are blocked."""
        self._check()
        with self._changed:
            row_id = self._let_go(delivery)
            if row_id is None:
                return -1
            before = self._put_off.get(row_id)
            releases = before.releases if before else 0
            releases = 0 if release.charge_attempt or release.charge_crash else releases + release.count
            delay_ms, blocked = release.delay_ms, release.blocked_by is not None
            if delay_ms is None or blocked:
                # Blocked rows are left out by the query itself, so a long delay would only outlast the blocker.
                delay_ms = min(30_000, 50 * 2 ** min(max(releases - 1, 0), 10)) if not blocked else BLOCKED_PAUSE_MS
            self._put_off[row_id] = _PutOff(time.monotonic() + delay_ms / 1000, releases)
            self._changed.notify_all()
            return releases

    def fail(self, delivery: Delivery, error: str) -> bool:
        """See :meth:`Broker.fail`; a row is failed by the store, so this is only for direct jobs."""
        raise CapabilityMissing("PostgreSQL carries no direct jobs, so none can be failed here.")

    def reclaim(self, worker: str, lanes: Sequence[str], *, lease_ms: int, grace_ms: int) -> Reclaimed:
        """See :meth:`Broker.reclaim`; nothing to do, because a lock ends with its session."""
        self._check()
        return Reclaimed([], more=False)

    def reassert(self, worker: str, deliveries: Sequence[Delivery]) -> list[Delivery]:
        self._check()
        with self._changed:
            held = self._held
            return [one for one in deliveries if one.reference in held and held[one.reference].lease == one.lease]

    def published(self, database: bytes, chunk: int) -> bytes:
        """Raise CapabilityMissing: there are no published bits to compare the rows with."""
        raise CapabilityMissing("PostgreSQL keeps no published bits: the rows themselves are the queue.")

    def locate(self, jobs: Sequence[Publication]) -> list[Place]:
        return [self.explain(job).place for job in jobs]

    def delayed_until(self, jobs: Sequence[Publication]) -> list[int]:
        found = [self.explain(job) for job in jobs]
        return [one.until_ms if one.place is Place.DELAYED else 0 for one in found]

    def explain(self, job: Publication) -> Explanation:
        """See :meth:`Broker.explain`; limits are those of this process."""
        self._check()
        row_id = Reference.unpack(job.reference).id
        found = self._query("reading a job", lambda cursor: diagnose(cursor, row_id))
        with self._changed:
            held = self._held.get(job.reference)
            if held is not None:
                return Explanation(Place.LEASED, worker=held.lease.worker)
            put_off = self._put_off.get(row_id)
            away = 0.0 if put_off is None else max(0.0, put_off.until - time.monotonic())
            return _place_of(found, job.reference, self._selector, list(self._known.values()), self._database, away)

    def reprioritize(self, job: Publication, priority: int) -> bool:
        """See :meth:`Broker.reprioritize`; the priority of the row counts here."""
        self._check()
        row_id = Reference.unpack(job.reference).id
        if job.reference in self._held:
            return False
        return self._query("changing a priority", lambda cursor: control.set_priority(cursor, row_id, priority)).applied

    def discard(self, job: Publication) -> bool:
        """See :meth:`Broker.discard`; a row that ended is no longer a candidate."""
        self._check()
        return job.reference not in self._held

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._querying:
            self._disconnect()

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("The PostgreSQL broker was closed; create a new one.")

    def _take(self, worker: str, lanes: dict[str, str], free: int, prefetch: int) -> list[Delivery]:
        """Select and hold up to that many jobs; query again while limits refuse some."""
        found: list[Delivery] = []
        for _ in range(MOST_QUERIES):
            wanted = free + prefetch - len(found)
            if wanted <= 0:
                break
            self._read_rules()
            others = self._others()
            with self._changed:
                self._forget()
                self._count(others)
                queues = self._selector.open_queues(lanes)
                passed_over = self._selector.passed_over(self._known.get(worker))
                aging = self._selector.rules.aging
                now = time.monotonic()
                away = [one.job.id for one in self._held.values()]
                away += (row_id for row_id, put_off in self._put_off.items() if put_off.until > now)
                away += (Reference.unpack(reference).id for _, reference in self._counted)
            if not queues:
                break
            ask = partial(candidates, queues=queues, limit=wanted, excluded=away, passed_over=passed_over, aging=aging)
            seen = self._query("reading pending jobs", ask)
            with self._changed:
                refused = self._grant(worker, lanes, self._selector.in_turn(seen, wanted), found, free)
            if not refused:
                break
        return found

    def _grant(
        self, worker: str, lanes: dict[str, str], jobs: Sequence[JobRow], found: list[Delivery], free: int
    ) -> bool:
        """Hold ``jobs``; return whether one was refused, so that another query may find more."""
        refused = False
        known = self._known.get(worker)
        for job in jobs:
            reference = job.reference(self._database)
            action = action_of(reference)
            self._selector.met(job, action)
            if reference in self._held:
                continue  # another thread of this process took it
            if len(found) >= free and (job.key is not None or job.limit is not None):
                return False
            if (known is not None and action not in known) or not self._selector.take(job, reference):
                refused = True
                continue
            self._entries += 1
            lease = Lease(b"%s%d" % (FALLBACK_PREFIX, self._entries), worker, 1)
            self._held[reference] = _Held(job, lease)
            put_off = self._put_off.get(job.id)
            releases = put_off.releases if put_off else 0
            found.append(
                Delivery(reference, lanes[job.queue], lease, job.due_ms, releases=releases, priority=job.priority)
            )
        return refused

    def _forget(self) -> None:
        now = time.monotonic()
        for row_id in [one for one, put_off in self._put_off.items() if put_off.until < now - FORGET_AFTER]:
            del self._put_off[row_id]

    def _let_go(self, delivery: Delivery) -> int | None:
        held = self._held.get(delivery.reference)
        if held is None or held.lease != delivery.lease:
            return None
        del self._held[delivery.reference]
        self._selector.give_back(delivery.reference)
        return held.job.id

    def _read_rules(self) -> None:
        now = time.monotonic()
        if now - self._rules_at < RULES_EVERY:
            return
        known = self._selector.rules.version
        found = self._query("reading the rules", lambda cursor: _newer(cursor, known))
        self._rules_at = now
        if found is not None:
            with self._changed:
                self._follow(found)

    def _count(self, others: Sequence[Delivery]) -> None:
        """Let the limits count those of ``others`` that belong to our database."""
        prefix = f"{self._database.tag.hex()}:"
        counted = [(one.lane.removeprefix(prefix), one.reference) for one in others if one.lane.startswith(prefix)]
        if counted != self._counted:
            self._counted = counted
            self._selector.recount(self._running())

    def _running(self) -> list[tuple[str, bytes]]:
        return [(one.job.queue, reference) for reference, one in self._held.items()] + self._counted

    def _follow(self, found: Rules) -> bool:
        if found.version < self._selector.rules.version:
            return False
        self._selector.follow(found, self._running())
        self._changed.notify_all()
        return True

    def _query(self, doing: str, ask: Callable[[Any], T]) -> T:
        with self._querying:
            try:
                with self._acquired().cursor() as cursor:
                    return ask(cursor)
            except (psycopg.Error, OSError, StoreError) as error:
                self._disconnect()
                raise _refused(translate(error, doing)) from error

    def _acquired(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = self._connect()
            try:
                with connection.cursor() as cursor:
                    found = schema.identify(cursor)
            except BaseException:
                connection.close()
                raise
            if found != self._database:
                connection.close()
                raise BrokerUnsuitable(
                    f"The database behind the worker's address was {self._database.uuid} and is now {found.uuid}; "
                    "restart the worker."
                )
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _newer(cursor: Any, known: int) -> Rules | None:
    return rules.read(cursor) if rules.version(cursor) > known else None


def _refused(error: StoreError) -> BrokerError:
    kind = BrokerUnavailable if isinstance(error, StoreUnavailable) else BrokerUnsuitable
    return kind(str(error))


def _place_of(
    found: JobDiagnosis | None,
    reference: bytes,
    selector: Selector,
    known: Sequence[frozenset[bytes] | None],
    database: schema.Database,
    put_off: float,
) -> Explanation:
    """Return the place of a row: the first that applies of time, pause, action, key and limit.

    ``known``: the actions of each worker of this process. ``put_off``: seconds for which it is left out here.
    """
    if found is None or found.state is not State.PENDING or found.job.reference(database) != reference:
        return Explanation(Place.NOWHERE)
    job = found.job
    if found.early:
        return Explanation(Place.DELAYED, until_ms=job.due_ms)
    if put_off:
        return Explanation(Place.DELAYED, until_ms=int((time.time() + put_off) * 1000))
    scope = _paused_by(selector.rules.pauses, job.queue, job.action, job.group)
    if scope:
        return Explanation(Place.PAUSED, scope)
    action = action_of(reference)
    if known and all(one is not None and action not in one for one in known):
        return Explanation(Place.UNROUTED)
    if found.before is not None:
        return Explanation(Place.BEHIND_KEY, holders=(found.before.reference(database),))
    gate = selector.closed_gate(job, reference)
    if gate is not None:
        holders = tuple(selector.holders(gate)[:10])
        return Explanation(Place.LIMITED, gate.counted[0].value, holders, selector.opens_ms(gate))
    return Explanation(Place.READY)


def _paused_by(pauses: frozenset[Pause], queue: str, action: str, group: str | None) -> str:
    """Return the scope of the pause that holds back such a job; "" if there is none."""
    for pause, scope in (
        (Pause(queue=queue), "queue"),
        (Pause(action=action), "action"),
        (Pause(group=group) if group is not None else None, "group"),
        (Pause(action=action, group=group) if group is not None else None, "action of group"),
    ):
        if pause in pauses:
            return scope
    return ""
