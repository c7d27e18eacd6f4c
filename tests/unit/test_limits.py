"""Concurrency slots and token buckets in one process."""

from __future__ import annotations

from sidestream.broker.limits import Gate, Gates, Limiter
from sidestream.job.reference import row_reference
from sidestream.job.rules import Limit, Rules, Scope

ONE = row_reference(b"12345678", 1, "act", None, None, "courier:7").pack()
TWO = row_reference(b"12345678", 2, "act", None, None, "courier:7").pack()
OTHER = row_reference(b"12345678", 3, "act", None, None, "courier:8").pack()


def gates(**limits: Limit) -> Gates:
    names = {"everything": (Scope.GLOBAL, ""), "queue": (Scope.QUEUE, "default"), "action": (Scope.ACTION, "act")}
    names["key"] = (Scope.KEY, "courier")
    return Gates(Rules(1, limits={names[name]: limit for name, limit in limits.items()}))


def scopes(found: tuple[Gate, ...]) -> list[str]:
    return [gate.counted[0].value for gate in found]


def test_every_limit_of_a_job_is_found() -> None:
    found = gates(everything=Limit(9), queue=Limit(8), action=Limit(7), key=Limit(1))
    assert scopes(found.of("default", ONE)) == ["global", "queue", "action", "key"]
    assert scopes(found.of("other", row_reference(b"12345678", 1, "bill", None).pack())) == ["global"]
    assert gates(key=Limit()).of("default", ONE) == (), "no limit at all is none to pass"
    one, other = (gates(key=Limit(1)).of_job(job)[0].counted for job in (ONE, OTHER))
    assert one != other, "each value has its own count"


def test_slots_are_taken_returned_and_recounted() -> None:
    limiter, found = Limiter(), gates(action=Limit(2), key=Limit(1))
    limiter.take(ONE, found.of("default", ONE), 0)
    closed = limiter.closed(found.of("default", TWO), 0)
    assert closed is not None
    assert closed.counted[0] is Scope.KEY
    assert limiter.holders(closed) == [ONE]
    assert limiter.closed(found.of("default", OTHER), 0) is None
    assert {scope for scope, _ in limiter.give_back(ONE)} == {Scope.ACTION, Scope.KEY}
    assert limiter.give_back(ONE) == ()
    assert limiter.closed(found.of("default", TWO), 0) is None
    limiter.recount([(TWO, found.of("default", TWO))])
    assert limiter.closed(found.of("default", ONE), 0) is not None


def test_tokens_refill_over_time_up_to_the_burst() -> None:
    limiter, found = Limiter(), gates(key=Limit(rate=2.0, burst=2)).of("default", ONE)
    for _ in range(2):
        assert limiter.closed(found, 1000) is None
        limiter.take(ONE, found, 1000)
    assert limiter.closed(found, 1000) is found[0]
    assert limiter.open_ms(found[0], 1000) == 1500
    assert limiter.closed(found, 1500) is None
    assert limiter.tokens(found[0], 60_000) == 2


def test_a_limit_of_0_admits_nothing() -> None:
    limiter, found = Limiter(), gates(key=Limit(rate=0.0)).of("default", ONE)
    assert limiter.closed(found, 0) is found[0]
    assert limiter.open_ms(found[0], 0) == 0
    none = gates(key=Limit(0)).of("default", ONE)
    assert limiter.closed(none, 0) is none[0]
