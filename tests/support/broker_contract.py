"""Test the broker contract: the order of jobs, and keys.

The other modules ``broker_contract_*`` test leases, priorities, limits, pauses, waiting claims and edited rows.

A test uses the fixture ``bench``, a :class:`Bench` with one broker. ``tests/contract/conftest.py`` names the tests that
a broker is excused from, with the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from statistics import median
from typing import Any, Protocol
from uuid import UUID, uuid4

from sidestream.broker.protocol import Broker, Delivery, Place, Publication, lane
from sidestream.job.job import DEFAULT_PRIORITY
from sidestream.job.names import tag
from sidestream.job.outcome import Release
from sidestream.job.reference import Reference, direct_reference, group_tag, limit_tag, row_reference
from sidestream.job.rules import Rules

LEASE_MS = 15_000
MANY = 20_000
RENEW_MS = 3_000
NAMES: dict[bytes, str | None] = {}
"""The names of the tags in the tests' references, for brokers that read rows."""
_versions = count(1)


class Bench(Protocol):
    """One broker for one test, with a clock that the test moves."""

    broker: Broker
    database: bytes
    #: The number of jobs in tests with very many jobs.
    many: int

    def second(self) -> Broker:
        """Return the broker as another process sees it."""
        ...

    def now(self) -> int:
        """Return the broker's time in Unix ms."""
        ...

    def advance(self, ms: int) -> None:
        """Move the broker's time forward, or with a real clock wait."""
        ...

    def put(self, jobs: Sequence[Publication]) -> None:
        """Make jobs pending and publish them."""
        ...

    def end(self, deliveries: Sequence[Delivery]) -> None:
        """Settle jobs as done, as their worker does."""
        ...

    def somebody_waits(self) -> bool:
        """Return whether a claim waits for its first job (True if that makes no difference)."""
        ...


def lanes_of(bench: Bench) -> list[str]:
    """Return the lanes that the tests' workers serve."""
    return [lane(bench.database, "default")]


def row(
    bench: Bench,
    row_id: int,
    key: str | None = None,
    *,
    due: int = 0,
    attempted: bool = False,
    priority: int = DEFAULT_PRIORITY,
    group: str | None = None,
    limit: str | None = None,
    action: str = "act",
    queue: str = "default",
) -> Publication:
    """Return the publication of a row."""
    NAMES.update({tag(action, 4): action, group_tag(group): group, limit_tag(limit): limit})
    packed = row_reference(bench.database, row_id, action, key, group, limit).pack()
    return Publication(packed, lane(bench.database, queue), due, None, attempted, priority)


def direct(bench: Bench, key: str | None = None, uuid: UUID | None = None) -> Publication:
    """Return the publication of a direct job."""
    packed = direct_reference(uuid or uuid4(), "act", key, bench.database).pack()
    return Publication(packed, lane(bench.database, "default"), 0, b"signed bytes")


def govern(bench: Bench, broker: Broker | None = None, **rules: Any) -> Rules:
    """Put new rules in force and return them."""
    new = Rules(next(_versions), **rules)
    assert (broker or bench.broker).configure(bench.database, new)
    return new


def serve(bench: Bench, count: int, *, worker: str = "w1", queues: Sequence[str] = ("default",)) -> list[int]:
    """Claim and settle up to ``count`` jobs one by one; return their ids in that order."""
    served: list[int] = []
    for _ in range(count):
        found = bench.broker.claim(worker, [lane(bench.database, queue) for queue in queues], free=1)
        bench.end(found)
        served += ids(found)
    return served


def ids(deliveries: Sequence[Delivery]) -> list[int]:
    """Return the row ids of deliveries."""
    return [Reference.unpack(delivery.reference).id for delivery in deliveries]


def claim(bench: Bench, free: int = 10, prefetch: int = 0, *, worker: str = "w1", wait_ms: int = 0) -> list[Delivery]:
    """Claim for a worker of the default lane."""
    return bench.broker.claim(worker, lanes_of(bench), free=free, prefetch=prefetch, wait_ms=wait_ms)


@contextmanager
def running(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run ``work`` in a thread beside the block, and join it."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive(), "the work beside the test did not end"


class OrderCases:
    """The order of jobs."""

    def test_oldest_first_and_ties_by_id(self, bench: Bench) -> None:
        bench.put([row(bench, 30)])
        bench.advance(10)
        bench.put([row(bench, 12), row(bench, 11), row(bench, 256)])
        assert ids(claim(bench, 2)) + ids(claim(bench, 9)) == [30, 11, 12, 256]

    def test_a_claim_takes_no_more_than_asked(self, bench: Bench) -> None:
        bench.put([row(bench, number) for number in range(1, 8)])
        assert len(claim(bench, 2)) == 2
        assert len(claim(bench, 1, 3)) == 4
        assert len(claim(bench, 5, 5)) == 1
        assert claim(bench) == []

    def test_prefetch_stops_at_a_key(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "a"), row(bench, 2), row(bench, 3, "b"), row(bench, 4)])
        assert ids(claim(bench, 1, 10)) == [1, 2]
        assert ids(claim(bench, 0, 10)) == []
        assert ids(claim(bench, 2)) == [3, 4]

    def test_lanes_are_separate_and_each_gives_its_oldest_first(self, bench: Bench) -> None:
        other = lane(bench.database, "other")
        bench.put([row(bench, 1)._replace(lane=other)])
        bench.advance(10)
        bench.put([row(bench, 2)])
        bench.advance(10)
        bench.put([row(bench, 3)._replace(lane=other)])
        assert ids(claim(bench, 1)) == [2]
        bench.put([row(bench, 4)])
        found = ids(bench.broker.claim("w2", [*lanes_of(bench), other], free=9))
        assert sorted(found) == [1, 3, 4]
        assert found.index(1) < found.index(3)

    def test_two_workers_share_without_overlap(self, bench: Bench) -> None:
        bench.put([row(bench, number) for number in range(1, 301)])
        second, found = bench.second(), []

        def work(broker: Broker, worker: str) -> None:
            while got := broker.claim(worker, lanes_of(bench), free=7):
                found.extend(ids(got))

        with running(lambda: work(second, "w2")):
            work(bench.broker, "w1")
        assert sorted(found) == list(range(1, 301))

    def test_publishing_twice_is_publishing_once(self, bench: Bench) -> None:
        assert bench.broker.publish([row(bench, 1), row(bench, 2), row(bench, 1)]) == 2
        assert bench.broker.publish([row(bench, 1), row(bench, 3)]) == 1
        (first, *_) = claim(bench, 1)
        assert bench.broker.publish([row(bench, 1)]) == 0
        bench.end([first])
        bench.advance(10)
        assert bench.broker.publish([row(bench, 1)]) == 1
        assert ids(claim(bench)) == [2, 3, 1]

    def test_force_publishes_only_missing_jobs(self, bench: Bench) -> None:
        jobs = [row(bench, 1), row(bench, 2, "k"), row(bench, 3, "k"), row(bench, 4, due=bench.now() + 9000)]
        bench.put(jobs)
        assert bench.broker.publish(jobs, force=True) == 0
        claimed = claim(bench, 1)
        assert bench.broker.publish(jobs, force=True) == 0
        assert ids(claimed) == [1]

    def test_a_due_time_in_the_past_is_its_place(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        bench.put([row(bench, 2, due=bench.now() - 5000)])
        assert ids(claim(bench)) == [2, 1]

    def test_not_before_it_is_due(self, bench: Bench) -> None:
        bench.put([row(bench, 1, due=bench.now() + 2000), row(bench, 2)])
        (second,) = claim(bench)
        assert ids([second]) == [2]
        bench.advance(2100)
        assert ids(claim(bench)) == [1]

    def test_a_released_job_has_its_old_place(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        bench.advance(10)
        bench.put([row(bench, 2)])
        (first,) = claim(bench, 1)
        assert bench.broker.release(first, Release()) == 1
        again = claim(bench, 2)
        assert ids(again) == [1, 2]
        assert (again[0].ready_ms, again[0].releases) == (first.ready_ms, 1)

    def test_a_delayed_release_keeps_its_place_too(self, bench: Bench) -> None:
        bench.put([row(bench, 1)])
        (first,) = claim(bench, 1)
        bench.broker.release(first, Release(delay_ms=2500))
        bench.advance(10)
        bench.put([row(bench, 2)])
        assert ids(claim(bench, 0, 9)) == [2]
        bench.advance(2600)
        bench.put([row(bench, 3)])
        again = claim(bench)
        assert ids(again) == [1, 3]
        assert again[0].ready_ms == first.ready_ms

    def test_many_jobs_due_at_once_are_promoted_in_batches(self, bench: Bench) -> None:
        due = bench.now() + 60_000
        bench.put([row(bench, number, due=due) for number in range(1, MANY + 1)])
        bench.advance(61_000)
        assert len(claim(bench, 50)) == 50
        assert bench.broker.locate([row(bench, MANY, due=due)]) == [Place.DELAYED], "one call promoted all of them"
        assert len(claim(bench, 50, 100)) == 150


class KeyCases:
    """Jobs with the same key run one at a time, in the order of their ids."""

    def test_one_at_a_time_in_the_order_of_ids(self, bench: Bench) -> None:
        bench.put([row(bench, number, "k") for number in (3, 1, 2)] + [row(bench, 9, "other")])
        (first, other) = sorted(claim(bench), key=lambda one: ids([one]))
        assert ids([first, other]) == [1, 9]
        assert claim(bench) == []
        for expected in (2, 3):
            bench.end([first])
            (first,) = claim(bench)
            assert ids([first]) == [expected]
        bench.end([first, other])
        assert claim(bench) == []

    def test_a_smaller_id_that_arrives_becomes_head(self, bench: Bench) -> None:
        bench.put([row(bench, 5, "k")])
        bench.put([row(bench, 4, "k")])
        (head,) = claim(bench)
        assert ids([head]) == [4]
        bench.end([head])
        assert ids(claim(bench)) == [5]

    def test_a_running_head_is_not_changed(self, bench: Bench) -> None:
        bench.put([row(bench, 5, "k")])
        (head,) = claim(bench)
        bench.put([row(bench, 4, "k")])
        assert claim(bench) == []
        bench.broker.release(head, Release(count=False))
        assert ids(claim(bench)) == [4]

    def test_a_retrying_head_blocks_its_key(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k"), row(bench, 2, "k"), row(bench, 3)])
        head, _ = claim(bench)
        assert bench.broker.release(head, Release(delay_ms=1500, charge_attempt=True)) == 0
        bench.advance(500)
        assert claim(bench) == []
        bench.advance(1500)
        assert ids(claim(bench)) == [1]

    def test_a_retrying_head_gives_way_to_a_smaller_id_and_is_due_later_all_the_same(self, bench: Bench) -> None:
        bench.put([row(bench, 2, "k")])
        (head,) = claim(bench)
        bench.broker.release(head, Release(delay_ms=2000, charge_attempt=True))
        bench.put([row(bench, 1, "k")])
        (smaller,) = claim(bench)
        assert ids([smaller]) == [1]
        bench.end([smaller])
        assert claim(bench) == []
        bench.advance(2100)
        assert ids(claim(bench)) == [2]

    def test_a_published_retry_keeps_its_place_while_it_waits(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k", due=bench.now() + 1500, attempted=True), row(bench, 2, "k")])
        assert claim(bench) == []
        bench.advance(1600)
        assert ids(claim(bench)) == [1]

    def test_a_scheduled_job_does_not_block_its_key_until_it_is_due(self, bench: Bench) -> None:
        bench.put([row(bench, 1, "k", due=bench.now() + 1500), row(bench, 2, "k"), row(bench, 3, "k")])
        (head,) = claim(bench)
        assert ids([head]) == [2]
        bench.advance(1600)
        assert claim(bench) == []
        bench.end([head])
        assert ids(claim(bench)) == [1]

    def test_one_key_with_very_many_jobs_is_cheap(self, bench: Bench) -> None:
        bench.put([row(bench, number, "k") for number in range(1, MANY + 1)])
        bench.put([row(bench, MANY + 1)])
        head, free = claim(bench)
        assert ids([head, free]) == [1, MANY + 1]
        took = []
        for expected in range(2, 9):
            began = time.perf_counter()
            bench.end([head])
            (head,) = claim(bench)
            took.append(time.perf_counter() - began)
            assert ids([head]) == [expected]
        assert median(took) < 0.1

    def test_blocked_by_a_job_that_waits_here(self, bench: Bench) -> None:
        bench.put([row(bench, 5, "k")])
        (head,) = claim(bench)
        bench.put([row(bench, 4, "k"), row(bench, 6, "k")])
        bench.broker.release(head, Release(delay_ms=None, blocked_by=4))
        for expected in (4, 5, 6):
            (head,) = claim(bench)
            assert ids([head]) == [expected]
            bench.end([head])

    def test_blocked_by_a_job_unknown_here_waits_and_gives_way_when_it_comes(self, bench: Bench) -> None:
        bench.put([row(bench, 5, "k"), row(bench, 6, "k")])
        (head,) = claim(bench)
        bench.broker.release(head, Release(delay_ms=60_000, blocked_by=4))
        assert claim(bench) == []
        bench.put([row(bench, 4, "k")])
        (blocker,) = claim(bench)
        assert ids([blocker]) == [4]
        bench.end([blocker])
        assert ids(claim(bench)) == [5], "the delay was only for want of the blocker"

    def test_a_discarded_head_frees_its_key(self, bench: Bench) -> None:
        first, second, third = (row(bench, number, "k") for number in (1, 2, 3))
        bench.put([first, second, third])
        assert bench.broker.discard(second)
        assert bench.broker.discard(first)
        assert not bench.broker.discard(first)
        (running_one,) = claim(bench)
        assert ids([running_one]) == [3]
        assert not bench.broker.discard(third)
        assert bench.broker.publish([first]) == 1, "a person may retry it later"

    def test_a_head_is_discarded_without_knowing_its_lane(self, bench: Bench) -> None:
        head, behind = row(bench, 1, "k", queue="other", priority=9), row(bench, 2, "k")
        bench.put([head._replace(attempted=True, due_ms=bench.now() + 60_000), behind])
        assert claim(bench) == []
        assert bench.broker.explain(behind).holders == (head.reference,)
        assert bench.broker.discard(behind._replace(reference=head.reference))
        assert ids(claim(bench)) == [2]

    def test_every_place_is_reported(self, bench: Bench) -> None:
        jobs = [row(bench, 1), row(bench, 2, "k"), row(bench, 3, "k"), row(bench, 4, due=bench.now() + 9000)]
        bench.put(jobs)
        assert bench.broker.locate([*jobs, row(bench, 5)]) == [
            Place.READY,
            Place.READY,
            Place.BEHIND_KEY,
            Place.DELAYED,
            Place.NOWHERE,
        ]
        assert len(claim(bench, 1)) == 1
        assert bench.broker.locate(jobs[:1]) == [Place.LEASED]
