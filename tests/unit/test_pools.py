"""Sorted sets, and the schedule of a pool."""

from __future__ import annotations

from random import Random

from sidestream.broker.memory.pools import Pool, SortedSet, flow_of

A, B = (flow_of(5, group * 8) for group in (b"a", b"b"))
LOW = flow_of(9, b"a" * 8)


def test_a_sorted_set_is_always_sorted() -> None:
    random, kept, truth = Random(1), SortedSet(), dict[bytes, float]()
    for _ in range(3000):
        member, score = b"%d" % random.randrange(60), float(random.randrange(9))
        if random.random() < 0.5:
            assert kept.add(member, score) is (member not in truth)
            truth[member] = score
        else:
            assert kept.remove(member) is (truth.pop(member, None) is not None)
        order = sorted((score, member) for member, score in truth.items())
        assert (kept.first(), kept.last()) == ((order[0], order[-1]) if order else (None, None))
        assert kept.up_to(4, 3) == [member for score, member in order if score <= 4][:3]
        assert [kept.rank(member) for _, member in order[:5]] == list(range(len(order[:5])))


def test_a_flow_exists_while_it_has_jobs() -> None:
    pool = Pool()
    pool.put(A, b"1", 0)
    pool.charge(A, 3, 1)
    pool.put(B, b"2", 0)
    assert pool.schedule.score(A) == pool.schedule.score(B), "a flow that joins starts at the smallest of its priority"
    pool.remove(A, b"1")
    assert pool.next_flow() == B
    pool.remove(B, b"2")
    assert not pool


def test_every_second_turn_serves_the_longest_waiting_job() -> None:
    pool = Pool()
    pool.put(A, b"1", 100)
    pool.put(LOW, b"2", 0)
    assert [pool.next_flow(aged_before=50) for _ in range(4)] == [LOW, A, LOW, A]
    assert [pool.next_flow(aged_before=0) for _ in range(2)] == [A, A]
