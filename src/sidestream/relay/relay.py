"""Publish committed rows to the broker without making the user wait for it.

One thread per process does everything that can hang: resolving a name, connecting, and talking to a frozen server. The
caller hands publications over and waits for the answer, at most ``wait`` seconds in total. The first error, or the
first wait without progress, opens the breaker. While the breaker is open, callers do not wait. The relay keeps their
publications (10,000 references; it drops more, and the reconciler finds their rows), and only the thread asks the
broker again, after 0.5 s, doubling to 5 s. When everything that was kept is published, the breaker closes.

While nothing fails, a caller with a few KiB publishes them itself over a connection that the thread has opened, which
saves a thread switch. The thread handles everything else, and every error.

The path of a publication through the thread: 1. :meth:`Relay.hand_over` queues it. 2. The thread takes up to 500. 3. It
connects if necessary. 4. It publishes them. 5. It notifies the callers, or opens the breaker and keeps the rows.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Literal

from sidestream.broker.protocol import AtOnce, Broker, Publication
from sidestream.crashpoints import crash_point
from sidestream.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnsuitable,
    CapabilityMissing,
    SidestreamError,
    StaleGeneration,
)
from sidestream.relay.queue import (
    CHUNK_SIZE,
    RelayFault,
    RelayState,
    Ticket,
    direct_error,
    has_work,
    return_chunk,
    take_chunk,
)

KEPT_LIMIT = 10_000
"""Most publications kept while the breaker is open."""
AT_ONCE_MOST = 64
"""Most publications that a caller publishes itself."""
AT_ONCE_BYTES = 8192
"""Most bytes of them; a socket buffers as much without waiting for the other side."""
BUSY_POLL = 0.05
"""Seconds between two checks of the thread whether a caller still publishes."""
FIRST_PROBE = 0.5
"""Seconds until the first retry after an error of the broker."""
LAST_PROBE = 5.0
"""Most seconds between two retries while the broker does not answer."""
GENERATION_RETRIES = 3
"""How often the generation may change during one publish."""

_log = logging.getLogger("sidestream.relay.relay")


def publish_in_current_generation(broker: Broker, publications: Sequence[Publication]) -> None:
    """Publish, and retry when the broker's generation has changed."""
    for _ in range(GENERATION_RETRIES):
        try:
            broker.publish(publications)
            return
        except StaleGeneration:  # emptied or replaced, and nothing was written
            ensure_generation(broker)
    raise BrokerUnavailable(f"The broker's contents were replaced {GENERATION_RETRIES} times during one publish.")


def ensure_generation(broker: Broker) -> None:
    """Read the broker's generation, and begin one if it has none."""
    if not broker.generation().number:
        broker.begin_generation()


class Relay:
    """Publishes committed rows and direct jobs; see the head of this file."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        *,
        wait: float = 0.2,
        kept_limit: int = KEPT_LIMIT,
        first_probe: float = FIRST_PROBE,
        last_probe: float = LAST_PROBE,
    ) -> None:
        """Publish to the broker that ``connect`` returns; the thread calls it, and it may be slow.

        ``wait``: most seconds that a caller of :meth:`hand_over` waits. The first call starts the thread.
        """
        self._connect = connect
        self._wait = wait
        self._kept_limit = kept_limit
        self._first_probe = first_probe
        self._last_probe = last_probe
        self._broker: Broker | None = None  # used by the thread only
        self._quick: AtOnce | None = None  # the same broker if it can; used by the current publisher
        self._state = RelayState()
        _relays.add(self)

    @property
    def broken(self) -> bool:
        """Whether the breaker is open: the broker did not answer the last request."""
        return self._state.open_since is not None

    @property
    def kept(self) -> int:
        """Number of row publications that are kept."""
        return len(self._state.rows)

    def hand_over(self, publications: Sequence[Publication]) -> bool:
        """Publish committed rows and return whether they are published.

        False means later: this relay keeps them, or the reconciler finds their rows. Waits at most ``wait`` seconds,
        not at all while the breaker is open, and never raises.
        """
        if not publications:
            return True
        state = self._state
        deadline = time.monotonic() + self._wait
        if self._at_once(state, publications, self._wait) is True:
            return True
        ticket = Ticket(len(publications))
        with state.changed:
            if state.closing or not self._ensure_thread(state):
                return False
            behind_a_bulk = len(state.rows) > CHUNK_SIZE  # only the caller of the bulk waits for it
            progress = state.progress
            state.rows.extend((publication, ticket) for publication in publications)
            self._trim(state)
            state.changed.notify_all()
            if behind_a_bulk:
                return False
            while ticket.left and state.open_since is None and not state.closing:
                if state.changed.wait(deadline - time.monotonic()) or not ticket.left:
                    continue
                if state.progress == progress:
                    self._open_breaker(state, f"it did not answer within {self._wait:g} s")
                break
            return not ticket.left

    def publish_direct(self, publication: Publication, timeout: float) -> None:
        """Publish a direct job, which has no row to fall back on; return once the broker has it.

        Raises :class:`~sidestream.errors.BrokerUnavailable` (at once while the breaker is open, else after ``timeout``
        seconds at the latest), :class:`~sidestream.errors.BrokerUnsuitable`, :class:`~sidestream.errors.BrokerFull` or
        :class:`~sidestream.errors.CapabilityMissing`. The message says whether the job may have been enqueued.
        """
        state = self._state
        deadline = time.monotonic() + timeout
        at_once = self._at_once(state, (publication,), timeout)
        if at_once is True:
            return
        if at_once is not None:
            raise direct_error(at_once, publication, sent=True)
        ticket = Ticket(1)
        item = (publication, ticket)
        with state.changed:
            if state.closing:
                raise direct_error(BrokerUnavailable("The relay is closed."), publication, sent=False)
            if state.open_since is not None:
                away = time.monotonic() - state.open_since
                why = BrokerUnavailable(f"The broker has not answered for {away:.1f} s.")
                raise direct_error(why, publication, sent=False)
            if not self._ensure_thread(state):
                why = BrokerUnavailable("This process cannot start the relay's thread.")
                raise direct_error(why, publication, sent=False)
            progress = state.progress
            state.direct.append(item)
            state.changed.notify_all()
            while ticket.left and ticket.error is None:
                if state.changed.wait(deadline - time.monotonic()) or not ticket.left or ticket.error is not None:
                    continue
                if state.progress == progress:
                    self._open_breaker(state, f"it did not answer within {timeout:g} s")
                if not ticket.taken:
                    state.direct.remove(item)
                why = BrokerUnavailable(f"The broker did not answer within {timeout:g} s.")
                raise direct_error(why, publication, sent=ticket.taken)
        if ticket.error is not None:
            raise ticket.error

    def close(self, timeout: float = 1.0) -> None:
        """Publish kept rows if the broker answers, for at most ``timeout`` seconds, and stop."""
        state = self._state
        with state.changed:
            state.closing = True
            state.changed.notify_all()
        if state.thread is not None:
            state.thread.join(timeout)

    def _at_once(
        self, state: RelayState, publications: Sequence[Publication], seconds: float
    ) -> Literal[True] | BrokerUnavailable | None:
        """Publish in the caller's thread if no other thread publishes and nothing is queued.

        Returns True on success, the error when the broker is unavailable (which opens the breaker), and None when the
        relay's thread has to publish, which is harmless to repeat.
        """
        if len(publications) > AT_ONCE_MOST:
            return None
        if sum(len(one.reference) + len(one.payload or b"") for one in publications) > AT_ONCE_BYTES:
            return None
        mine = object()
        done: Literal[True] | BrokerUnavailable | None = None
        try:
            with state.changed:
                broker = self._quick
                if broker is None or state.busy is not None or state.rows or state.direct or state.closing:
                    return None
                if state.open_since is not None:
                    return None
                state.busy = mine
            crash_point("relay.before_publish")
            if broker.publish_at_once(publications, seconds):
                done = True
                crash_point("relay.published")
        except BrokerUnavailable as error:
            done = error
        except BrokerError as error:
            _log.info(
                "The broker refused a publication; the relay's thread repeats it: %s",
                error,
                extra={"action": "relay_refused"},
            )
        except Exception:  # noqa: BLE001  # the caller's work must not fail; the thread repeats and reports
            _log.exception("Publishing in the caller's thread failed.", extra={"action": "relay_fault"})
        finally:
            if state.busy is mine:
                # First, and without the lock, so that an exception while waiting for the lock does not leave it busy.
                state.busy = None
                with state.changed:
                    state.progress += done is True
                    if isinstance(done, BrokerUnavailable):
                        self._open_breaker(state, str(done))
                    if state.rows or state.direct or state.closing or state.open_since is not None:
                        state.changed.notify_all()
        return done

    # -- callers and thread, under the condition -----------------------------------------------------------------

    def _ensure_thread(self, state: RelayState) -> bool:
        if state.thread is not None:
            return True
        thread = threading.Thread(target=self._run, args=(state,), name="sidestream-relay", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            _log.warning("The relay's thread cannot be started: %s.", error, extra={"action": "relay_not_started"})
            return False
        state.thread = thread
        return True

    def _trim(self, state: RelayState) -> None:
        """While the breaker is open, drop the newest rows beyond the limit."""
        if state.open_since is None:
            return
        for _ in range(len(state.rows) - self._kept_limit):
            state.rows.pop()
            state.dropped += 1

    def _open_breaker(self, state: RelayState, reason: str) -> None:
        if state.open_since is None:
            state.open_since = time.monotonic()
            state.dropped = 0
            _log.warning(
                "The broker is unavailable, so jobs wait in PostgreSQL: %s", reason, extra={"action": "relay_opened"}
            )
        self._trim(state)
        state.changed.notify_all()

    def _close_breaker(self, state: RelayState) -> None:
        if state.open_since is not None and not state.rows:
            away = time.monotonic() - state.open_since
            state.open_since = None
            _log.info(
                "The broker answers again after %.1f s; the reconciler publishes %d dropped references.",
                away,
                state.dropped,
                extra={"action": "relay_closed"},
            )

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self, state: RelayState) -> None:
        pause = self._first_probe
        while True:
            with state.changed:
                while state.busy is not None or not has_work(state):
                    state.changed.wait(BUSY_POLL if state.busy is not None and has_work(state) else None)
                if state.closing and not (state.rows or state.direct):
                    break
                chunk = take_chunk(state)
                state.busy = self
            error, sent = self._publish([publication for publication, _ in chunk])
            with state.changed:
                state.busy = None
                if error is None:
                    pause = self._first_probe
                    state.progress += 1
                    for _, ticket in chunk:
                        ticket.left -= 1
                    self._close_breaker(state)
                    state.changed.notify_all()
                    continue
                return_chunk(state, chunk, error, sent=sent)
                if isinstance(error, CapabilityMissing):  # an answer to one caller, not an outage
                    state.changed.notify_all()
                    continue
                self._open_breaker(state, str(error))
                # Only close() wakes it early: another job is no reason to ask an unavailable server again.
                if state.changed.wait_for(lambda: state.closing, pause):
                    break
                pause = min(pause * 2, self._last_probe)
        self._disconnect()

    def _publish(self, publications: list[Publication]) -> tuple[BrokerError | None, bool]:
        """Connect if necessary and publish; without publications, check whether the broker answers.

        Returns the error, and whether the publications may have reached the broker nevertheless.
        """
        sent = False
        try:
            if self._broker is None:
                self._broker = self._connect()
                ensure_generation(self._broker)
                self._quick = self._broker if isinstance(self._broker, AtOnce) else None
            elif not publications:
                ensure_generation(self._broker)
            if publications:
                crash_point("relay.before_publish")
                sent = True
                publish_in_current_generation(self._broker, publications)
                crash_point("relay.published")
                self._prepare_at_once()
        except BrokerUnavailable as error:
            self._disconnect()  # reconnect next time: the address, or the embedded server, may have changed
            return error, sent
        except BrokerError as error:  # it answered and refused
            return error, False
        except SidestreamError as error:  # a wrong setting that only connecting reveals
            return BrokerUnsuitable(str(error)), False
        except Exception as error:  # noqa: BLE001  # the thread must survive a fault of ours; the rows are safe
            _log.exception("Publishing failed.", extra={"action": "relay_fault"})
            return RelayFault(f"Publishing failed unexpectedly ({type(error).__name__}: {error})."), sent
        return None, False

    def _prepare_at_once(self) -> None:
        """Open the connection of :meth:`_at_once`; without it, only the thread publishes."""
        if self._quick is None:
            return
        try:
            self._quick.get_ready()
        except BrokerError as error:
            _log.info("Callers cannot publish in their own threads: %s", error, extra={"action": "relay_not_ready"})

    def _disconnect(self) -> None:
        broker, self._broker, self._quick = self._broker, None, None
        if broker is not None:
            broker.close()

    def reset_after_fork(self) -> None:
        """Discard everything in a forked child; the parent publishes what it has queued."""
        closing = self._state.closing
        self._state = RelayState(closing=closing)
        self._broker = self._quick = None


_relays: weakref.WeakSet[Relay] = weakref.WeakSet()


def _after_fork() -> None:
    for relay in list(_relays):
        relay.reset_after_fork()


# A forked child has no relay thread and may have copied a held lock: Odoo's prefork server forks after import.
os.register_at_fork(after_in_child=_after_fork)
