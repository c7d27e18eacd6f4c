"""Queue publications for the relay's thread, and report errors to waiting callers."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from sidestream.broker.protocol import Publication
from sidestream.errors import BrokerError, CapabilityMissing
from sidestream.job.reference import Reference

CHUNK_SIZE = 500
"""Most publications in one call of the broker, so that no call occupies it for long."""


class RelayFault(BrokerError):
    """Publishing failed because of a fault in Sidestream, so repeating it does not help."""


@dataclass(eq=False, slots=True)
class Ticket:
    """The progress of one caller's publications."""

    left: int  # publications that are not published yet
    taken: bool = False  # the thread has begun to publish them
    error: BrokerError | None = None  # direct jobs only


Item = tuple[Publication, Ticket]


@dataclass(eq=False, slots=True)
class RelayState:
    """The state that callers and the thread share.

    A forked child replaces it as a whole, because its copy of the lock may be held.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    rows: deque[Item] = field(default_factory=deque)
    direct: deque[Item] = field(default_factory=deque)
    thread: threading.Thread | None = None
    open_since: float | None = None  # monotonic; None while the breaker is closed
    dropped: int = 0  # since the breaker opened
    progress: int = 0  # chunks published so far
    busy: object | None = None  # the publisher: the thread, or a caller that publishes immediately
    closing: bool = False


def has_work(state: RelayState) -> bool:
    """Return whether the thread has something to do."""
    return bool(state.rows or state.direct or state.closing or state.open_since is not None)


def take_chunk(state: RelayState) -> list[Item]:
    """Take up to a chunk, direct jobs first because their callers have no row to rely on.

    Rows and direct jobs never share a chunk, because an error has a different consequence for each.
    """
    source = state.direct or state.rows
    chunk = [source.popleft() for _ in range(min(CHUNK_SIZE, len(source)))]
    for _, ticket in chunk:
        ticket.taken = True
    return chunk


def return_chunk(state: RelayState, chunk: list[Item], error: BrokerError, *, sent: bool) -> None:
    """Keep the rows after an error that they do not cause, and report it for direct jobs."""
    if chunk and chunk[0][0].payload is None:
        if isinstance(error, RelayFault):
            state.dropped += len(chunk)
        else:
            state.rows.extendleft(reversed(chunk))
    else:
        for publication, ticket in chunk:
            ticket.error = direct_error(error, publication, sent=sent)
    if not isinstance(error, CapabilityMissing):
        for publication, ticket in state.direct:
            ticket.error = direct_error(error, publication, sent=False)
        state.direct.clear()


def direct_error(error: BrokerError, publication: Publication, *, sent: bool) -> BrokerError:
    """Return ``error`` with its consequence for the direct job of ``publication``."""
    uuid = Reference.unpack(publication.reference).uuid
    consequence = (
        f"The job may have been enqueued; enqueueing it again with id={uuid} is safe."
        if sent
        else f"The job was not enqueued; enqueue it again, with id={uuid} if you like."
    )
    kind = BrokerError if isinstance(error, RelayFault) else type(error)
    return kind(f"{error} {consequence}")
