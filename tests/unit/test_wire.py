"""Messages between the supervisor and its children arrive unchanged."""

from __future__ import annotations

import msgpack
import pytest

from sidestream.broker.protocol import Publication
from sidestream.job.outcome import Fail, Release, Retry
from sidestream.job.reason import Reason, ReasonCode
from sidestream.worker import wire


def test_a_batch_arrives_whole() -> None:
    ours, theirs = wire.pair()
    sent = wire.Batch(3, [wire.Item(b"\x01ref", None, 0, False), wire.Item(b"\x02ref", b"s1.k.m.{}", 2, True)])
    with ours, theirs:
        wire.send_batch(ours, sent)
        assert wire.read_batch(wire.receive(theirs)) == sent


def test_a_report_arrives_with_every_kind_of_outcome() -> None:
    ours, theirs = wire.pair()
    sent = wire.Report(
        9,
        4,
        True,
        [
            wire.JobReport(0, Retry(1.5, "ValueError: no", "Traceback"), 2),
            wire.JobReport(1, Fail("gone", ""), 0),
            wire.JobReport(2, Release(Reason(ReasonCode.BLOCKED, {"by": 17}), None, 17), -1),
            wire.JobReport(3, Release(Reason(ReasonCode.SNOOZED, {"seconds": 60.0, "message": "closed"}), 60_000), 0),
            wire.JobReport(4, Release(Reason(ReasonCode.NOT_DUE), 60_000, unstarted=True), 0),
        ],
        {b"abcd": (4, 1234)},
        [Publication(b"\x01next", "00:default", 0, edited=True, withdrawn=True)],
        False,
    )
    with ours, theirs:
        wire.send_report(ours, sent)
        assert wire.receive_report(theirs) == sent


def test_a_closed_side_is_seen_as_the_end() -> None:
    ours, theirs = wire.pair()
    ours.close()
    with theirs:
        assert wire.receive(theirs) is None


def test_the_largest_batch_fits_one_packet() -> None:
    ours, theirs = wire.pair()
    sent = wire.Batch(
        1, [wire.Item(b"r" * 41, b"x" * 66_000, 0, False), wire.Item(b"r", b"y" * wire.BATCH_BYTES, 0, False)]
    )
    with ours, theirs:
        wire.send_batch(ours, sent)
        assert wire.read_batch(wire.receive(theirs)) == sent


def test_a_report_with_many_follow_up_jobs_comes_in_messages_that_fit() -> None:
    ours, theirs = wire.pair()
    jobs = [
        Publication(number.to_bytes(8, "big") * 8, "0" * 16 + ":" + "q" * 63, 1 << 60, None, True, 9, True, True)
        for number in range(1_201)
    ]
    job_report = wire.JobReport(4, Retry(1.5, "no stock", "Traceback"), 2)
    with ours, theirs:
        wire.send_report(ours, wire.Report(7, 5, True, [job_report], {b"abcd": (1, 2)}, jobs, True, True))
        first, second, last = (wire.receive_report(theirs) for _ in range(3))
        ours.close()
        assert wire.receive_report(theirs) is None
    for one in (first, second):
        assert one is not None
        assert one._replace(follow_ups=[]) == wire.Report(7, 0, False, [], {}, [], False)
    assert last is not None
    assert last._replace(follow_ups=[]) == wire.Report(7, 5, True, [job_report], {b"abcd": (1, 2)}, [], True, True)
    assert [*first.follow_ups, *second.follow_ups, *last.follow_ups] == jobs  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (b"x" * (wire.PACKET + 1), "cut off"),
        (b"\xc1", "not msgpack"),
        (b"\xda\xff", "not msgpack"),
        (msgpack.packb(["ready"]), "no report"),
        (msgpack.packb((1, 1, True, [(0, ("Other", {}), 0)], {}, [], False, False)), "no report"),
        (msgpack.packb((1, 1, True, [], [], [], False, False)), "no report"),
    ],
)
def test_unreadable_messages_are_recognized(packet: bytes, said: str) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.send(packet)
        with pytest.raises(wire.BadPacket, match=said):
            wire.receive_report(theirs)
