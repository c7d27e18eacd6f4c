"""What callers and the relay's thread share, and what is taken from it and given back."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from sidestream.broker.protocol import Publication
from sidestream.errors import BrokerError, CapabilityMissing
from sidestream.relay.calls import Fault, answer

CHUNK_SIZE = 500
"""Most publications in one call of the broker, so that no call stops it for long."""


@dataclass(eq=False, slots=True)
class Ticket:
    """What one caller waits for."""

    left: int  # publications that are not published yet
    taken: bool = False  # the thread has begun to publish them
    error: BrokerError | None = None  # direct jobs only


Item = tuple[Publication, Ticket]


@dataclass(eq=False, slots=True)
class Shared:
    """What callers and the thread share; replaced as a whole in a forked child, whose copy of the lock may be held."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    rows: deque[Item] = field(default_factory=deque)
    direct: deque[Item] = field(default_factory=deque)
    thread: threading.Thread | None = None
    open_since: float | None = None  # monotonic; None while the breaker is closed
    dropped: int = 0  # since the breaker acquired
    progress: int = 0  # chunks published so far
    busy: object | None = None  # who publishes: the thread, or a caller at once; the thread looks again while it is set
    closing: bool = False


def asked(shared: Shared) -> bool:
    """Whether there is something for the thread to do."""
    return bool(shared.rows or shared.direct or shared.closing or shared.open_since is not None)


def take(shared: Shared) -> list[Item]:
    """Take up to a chunk, direct jobs first: their callers have nothing else to rely on.

    Rows and direct jobs never share a chunk, because an error means something else for each.
    """
    source = shared.direct or shared.rows
    chunk = [source.popleft() for _ in range(min(CHUNK_SIZE, len(source)))]
    for _, ticket in chunk:
        ticket.taken = True
    return chunk


def hand_back(shared: Shared, chunk: list[Item], error: BrokerError, *, sent: bool) -> None:
    """After an error: keep rows (unless they are the fault), tell the callers of direct jobs."""
    if chunk and chunk[0][0].payload is None:
        if isinstance(error, Fault):
            shared.dropped += len(chunk)
        else:
            shared.rows.extendleft(reversed(chunk))
    else:
        for publication, ticket in chunk:
            ticket.error = answer(error, publication, sent=sent)
    if not isinstance(error, CapabilityMissing):
        for publication, ticket in shared.direct:
            ticket.error = answer(error, publication, sent=False)
        shared.direct.clear()
