"""The messages between the supervisor, the zygote and the children.

Every message is one packet of a ``SOCK_SEQPACKET`` unix socket (https://man7.org/linux/man-pages/man7/unix.7.html),
so there is no framing; its bytes are msgpack of one of the tuples below. What may be of any length (follow-up jobs, the
actions of an application) goes in several messages, each of which fits a packet and makes sense alone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import msgpack

from sidestream.broker.protocol import Publication
from sidestream.job.outcome import Done, Fail, Outcome, Release, Retry
from sidestream.job.reason import Reason

PACKET = 1 << 18
"""Largest packet that is read, in bytes."""
FOLLOW_UPS_MOST = 500
"""Most follow-up jobs in one message (at most 250 bytes each); they are published with one call of the broker."""
ACTIONS_MOST = 200
"""Most actions in one message of the zygote (at most 1 KiB each)."""
BATCH_BYTES = 96 * 1024
"""Most bytes of references and payloads in one batch; one job alone may be larger (64 KiB of arguments)."""


class Item(NamedTuple):
    """One job of a batch."""

    reference: bytes
    payload: bytes | None
    attempts: int
    #: The job runs alone, its attempt row is already written: it may be run although it is a suspect.
    run_alone: bool


class Batch(NamedTuple):
    """Supervisor to child: run these in order."""

    number: int
    items: list[Item]


class JobReport(NamedTuple):
    """How one job of a batch ended, when it was not simply done."""

    position: int
    outcome: Outcome
    #: The row's attempts when it was acquired; -1 when it was not acquired.
    attempts_seen: int


class Report(NamedTuple):
    """Child to supervisor: the jobs of batch ``number`` below ``upto`` ended."""

    number: int
    #: Jobs with a smaller index ended: done, unless a job report says otherwise.
    upto: int
    #: Whether the child is free again; jobs from ``upto`` on were then not started.
    idle: bool
    #: Those that were not simply done.
    job_reports: list[JobReport]
    #: action tag -> (jobs, microseconds) that ran since the last report.
    times: dict[bytes, tuple[int, int]]
    #: What the actions enqueued in their transactions.
    follow_ups: Sequence[Publication]
    #: The child wants to be replaced (age or memory).
    retiring: bool
    #: The application changed since its zygote loaded it: a new zygote is needed.
    stale: bool = False


class BadPacket(Exception):
    """A message is truncated or foreign, and later messages of its sender may be lost too."""


Part = TypeVar("Part")
_OUTCOMES: dict[str, type[Outcome]] = {kind.__name__: kind for kind in (Done, Retry, Fail, Release)}


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected packet sockets with room for the largest packet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET * 2)
    return ours, theirs


def send(end: socket.socket, message: object) -> None:
    """Send one message; raise OSError when the other side has ended or does not read."""
    end.send(msgpack.packb(message, unicode_errors="backslashreplace"))  # errors may hold lone surrogates


def receive(end: socket.socket) -> Any:
    """Return the next message (tuples come back as lists), or None when the other side closed.

    Raises :class:`BadPacket`, and OSError.
    """
    packet, _, flags, _ = end.recvmsg(PACKET)
    if flags & socket.MSG_TRUNC:
        raise BadPacket(f"a message of more than {PACKET} bytes was cut off")
    if not packet:
        return None
    try:
        return msgpack.unpackb(packet, strict_map_key=False)
    except Exception as error:  # msgpack's errors have no common class
        raise BadPacket(f"a message of {len(packet)} bytes is not msgpack ({type(error).__name__}: {error})") from error


def chunks(whole: Sequence[Part], most: int) -> list[Sequence[Part]]:
    """Return ``whole`` in pieces of at most ``most``; one empty piece when it is empty."""
    return [whole[at : at + most] for at in range(0, max(len(whole), 1), most)]


def send_batch(end: socket.socket, batch: Batch) -> None:
    """Send a batch to a child."""
    send(end, batch)


def read_batch(message: Any) -> Batch:
    """Return the batch that :func:`send_batch` sent."""
    number, items = message
    return Batch(number, [Item(*item) for item in items])


def send_report(end: socket.socket, report: Report) -> None:
    """Send a report to the supervisor, in several messages when it has many follow-up jobs."""
    *earlier, last = chunks(report.follow_ups, FOLLOW_UPS_MOST)
    for follow_ups in earlier:
        # First, and without the end of a job: after a crash in between, the reconciler publishes the rows.
        send(end, Report(report.number, 0, False, [], {}, follow_ups, False))
    packed = [one._replace(outcome=_pack(one.outcome)) for one in report.job_reports]  # type: ignore[arg-type]
    send(end, report._replace(job_reports=packed, follow_ups=last))


def receive_report(end: socket.socket) -> Report | None:
    """Return the next message of a child's report, or None when it closed its side.

    Raises :class:`BadPacket`, and OSError.
    """
    message = receive(end)
    try:
        return None if message is None else _report(message)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise BadPacket(f"a message is no report ({type(error).__name__}: {error})") from error


def _report(message: Any) -> Report:
    number, upto, idle, job_reports, times, follow_ups, retiring, stale = message
    return Report(
        number,
        upto,
        idle,
        [JobReport(position, _unpack(*outcome), seen) for position, outcome, seen in job_reports],
        {action: (jobs, micros) for action, (jobs, micros) in times.items()},
        [Publication(*one) for one in follow_ups],
        retiring,
        stale,
    )


def _pack(outcome: Outcome) -> tuple[str, dict[str, object]]:
    """Return the kind of an outcome and its fields by their names."""
    named = {one.name: getattr(outcome, one.name) for one in fields(outcome)}
    if isinstance(outcome, Release):
        named["reason"] = outcome.reason.stored()
    return type(outcome).__name__, named


def _unpack(kind: str, named: dict[str, Any]) -> Outcome:
    if "reason" in named:
        named["reason"] = Reason.parse(named["reason"])
    return _OUTCOMES[kind](**named)
