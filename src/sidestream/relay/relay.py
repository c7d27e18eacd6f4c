"""From a committed row to the broker, without ever making the user wait for it (D8).

One thread per process does everything that can hang: resolving a name, connecting, talking to a frozen server. The
caller hands publications over and waits for the answer, at most ``wait`` seconds in all. The first error, or the first
wait in which nothing moved, opens the breaker: from then on callers do not wait at all, what they hand over is kept
(10,000 references; more are dropped, the reconciler finds their rows), and the thread alone asks the broker again after
0.5 s, doubling to 5 s. When all that was kept is published, the breaker closes.

While nothing goes wrong a caller with a few KiB publishes by itself, over a connection that the thread has opened: that
saves a change of threads. Whatever it cannot do so, and every error, is the thread's.

A publication's way through the thread: 1. :meth:`Relay.hand_over` queues it. 2. The thread takes up to 500. 3. It
connects if it must. 4. It publishes them. 5. It tells the waiting callers, or opens the breaker and keeps them.
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
)
from sidestream.relay.calls import Fault, answer, ensure_generation, late, publish_looking
from sidestream.relay.queue import CHUNK_SIZE, Shared, Ticket, asked, hand_back, take

KEPT_LIMIT = 10_000
"""Most publications kept while the breaker is open."""
AT_ONCE_MOST = 64
"""Most publications that a caller publishes by itself."""
AT_ONCE_BYTES = 8192
"""Most bytes of them: what a socket takes without waiting for the other side."""
BUSY_LOOK = 0.05
"""Seconds after which the thread looks again whether a caller that publishes at once has ended."""
FIRST_PROBE = 0.5
"""Seconds until a broker that failed is asked again for the first time."""
LAST_PROBE = 5.0
"""Most seconds between two questions to a broker that does not answer."""

_log = logging.getLogger("sidestream.relay.relay")


class Relay:
    """Publishes what was committed; see the head of this file."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        *,
        wait: float = 0.2,
        kept_limit: int = KEPT_LIMIT,
        first_probe: float = FIRST_PROBE,
        last_probe: float = LAST_PROBE,
    ) -> None:
        """Publish over the broker that ``connect`` returns; it is called in the thread and may be slow.

        ``wait``: most seconds that a caller of :meth:`hand_over` waits. Nothing is started before the first call.
        """
        self._connect = connect
        self._wait = wait
        self._kept_limit = kept_limit
        self._first_probe = first_probe
        self._last_probe = last_probe
        self._broker: Broker | None = None  # touched by the thread only
        self._quick: AtOnce | None = None  # the same broker, where it can; used by whoever is busy
        self._shared = Shared()
        _relays.add(self)

    @property
    def broken(self) -> bool:
        """Whether the breaker is open: the broker did not answer when it was last asked."""
        return self._shared.open_since is not None

    @property
    def kept(self) -> int:
        """How many publications of rows wait to be published."""
        return len(self._shared.rows)

    def hand_over(self, publications: Sequence[Publication]) -> bool:
        """Publish committed rows, and return whether that is done.

        False means "later": this relay keeps them, or the reconciler finds their rows. Waits at most ``wait`` seconds,
        not at all while the breaker is open, and never raises.
        """
        if not publications:
            return True
        shared = self._shared
        deadline = time.monotonic() + self._wait
        if self._at_once(shared, publications, self._wait) is True:
            return True
        ticket = Ticket(len(publications))
        with shared.changed:
            if shared.closing or not self._start(shared):
                return False
            behind_a_bulk = len(shared.rows) > CHUNK_SIZE  # its own committer waits for it, nobody else has to
            progress = shared.progress
            shared.rows.extend((publication, ticket) for publication in publications)
            self._trim(shared)
            shared.changed.notify_all()
            if behind_a_bulk:
                return False
            while ticket.left and shared.open_since is None and not shared.closing:
                if shared.changed.wait(deadline - time.monotonic()) or not ticket.left:
                    continue
                if shared.progress == progress:
                    self._break(shared, f"it did not answer within {self._wait:g} s")
                break
            return not ticket.left

    def publish_direct(self, publication: Publication, timeout: float) -> None:
        """Publish a direct job, which has no row to fall back on, and return when the broker has it.

        Raises :class:`~sidestream.errors.BrokerUnavailable` (at once while the breaker is open, else after ``timeout``
        seconds at the latest), :class:`~sidestream.errors.BrokerUnsuitable`, :class:`~sidestream.errors.BrokerFull` or
        :class:`~sidestream.errors.CapabilityMissing`. The message says whether the job may have been enqueued.
        """
        shared = self._shared
        deadline = time.monotonic() + timeout
        at_once = self._at_once(shared, (publication,), timeout)
        if at_once is True:
            return
        if at_once is not None:
            raise answer(at_once, publication, sent=True)
        ticket = Ticket(1)
        item = (publication, ticket)
        with shared.changed:
            if shared.closing:
                raise answer(BrokerUnavailable("The relay is closed."), publication, sent=False)
            if shared.open_since is not None:
                away = time.monotonic() - shared.open_since
                why = BrokerUnavailable(f"The broker has not answered for {away:.1f} s.")
                raise answer(why, publication, sent=False)
            if not self._start(shared):
                why = BrokerUnavailable("This process cannot start the relay's thread.")
                raise answer(why, publication, sent=False)
            progress = shared.progress
            shared.direct.append(item)
            shared.changed.notify_all()
            while ticket.left and ticket.error is None:
                if shared.changed.wait(deadline - time.monotonic()) or not ticket.left or ticket.error is not None:
                    continue
                if shared.progress == progress:
                    self._break(shared, f"it did not answer within {timeout:g} s")
                if not ticket.taken:
                    shared.direct.remove(item)
                raise answer(late(timeout), publication, sent=ticket.taken)
        if ticket.error is not None:
            raise ticket.error

    def close(self, timeout: float = 1.0) -> None:
        """Publish what is kept if the broker answers, wait for that at most ``timeout`` seconds, and stop."""
        shared = self._shared
        with shared.changed:
            shared.closing = True
            shared.changed.notify_all()
        if shared.thread is not None:
            shared.thread.join(timeout)

    def _at_once(
        self, shared: Shared, publications: Sequence[Publication], seconds: float
    ) -> Literal[True] | BrokerUnavailable | None:
        """Publish in this thread if nobody publishes and nothing waits.

        Returns True when that is done, the error when the broker is away (the breaker is open), and None when it is
        the thread's to do, where a repetition does no harm.
        """
        if len(publications) > AT_ONCE_MOST:
            return None
        if sum(len(one.reference) + len(one.payload or b"") for one in publications) > AT_ONCE_BYTES:
            return None
        mine = object()
        done: Literal[True] | BrokerUnavailable | None = None
        try:
            with shared.changed:
                broker = self._quick
                if broker is None or shared.busy is not None or shared.rows or shared.direct or shared.closing:
                    return None
                if shared.open_since is not None:
                    return None
                shared.busy = mine
            crash_point("relay.before_publish")
            if broker.publish_at_once(publications, seconds):
                done = True
                crash_point("relay.published")
        except BrokerUnavailable as error:
            done = error
        except BrokerError as error:
            _log.info("The relay's thread repeats a refused publication: %s", error, extra={"action": "relay_refused"})
        except Exception:  # noqa: BLE001  # nothing is raised into the caller's work; the thread repeats and tells it
            _log.exception("Publishing at once failed.", extra={"action": "relay_fault"})
        finally:
            if shared.busy is mine:
                # First, and without the lock: an exception that comes while that is waited for changes nothing.
                shared.busy = None
                with shared.changed:
                    shared.progress += done is True
                    if isinstance(done, BrokerUnavailable):
                        self._break(shared, str(done))
                    if shared.rows or shared.direct or shared.closing or shared.open_since is not None:
                        shared.changed.notify_all()
        return done

    # -- callers and thread, under the condition -----------------------------------------------------------------

    def _start(self, shared: Shared) -> bool:
        if shared.thread is not None:
            return True
        thread = threading.Thread(target=self._run, args=(shared,), name="sidestream-relay", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            _log.warning("The relay's thread cannot be started: %s.", error, extra={"action": "relay_not_started"})
            return False
        shared.thread = thread
        return True

    def _trim(self, shared: Shared) -> None:
        """While the breaker is open, drop the newest beyond the limit."""
        if shared.open_since is None:
            return
        for _ in range(len(shared.rows) - self._kept_limit):
            shared.rows.pop()
            shared.dropped += 1

    def _break(self, shared: Shared, reason: str) -> None:
        if shared.open_since is None:
            shared.open_since = time.monotonic()
            shared.dropped = 0
            _log.warning("The broker is away: %s; jobs wait in PostgreSQL.", reason, extra={"action": "relay_opened"})
        self._trim(shared)
        shared.changed.notify_all()

    def _mend(self, shared: Shared) -> None:
        if shared.open_since is not None and not shared.rows:
            away = time.monotonic() - shared.open_since
            shared.open_since = None
            _log.info(
                "The broker answers again after %.1f s; %d references are left to the reconciler.",
                away,
                shared.dropped,
                extra={"action": "relay_closed"},
            )

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self, shared: Shared) -> None:
        pause = self._first_probe
        while True:
            with shared.changed:
                while shared.busy is not None or not asked(shared):
                    shared.changed.wait(BUSY_LOOK if shared.busy is not None and asked(shared) else None)
                if shared.closing and not (shared.rows or shared.direct):
                    break
                chunk = take(shared)
                shared.busy = self
            error, sent = self._publish([publication for publication, _ in chunk])
            with shared.changed:
                shared.busy = None
                if error is None:
                    pause = self._first_probe
                    shared.progress += 1
                    for _, ticket in chunk:
                        ticket.left -= 1
                    self._mend(shared)
                    shared.changed.notify_all()
                    continue
                hand_back(shared, chunk, error, sent=sent)
                if isinstance(error, CapabilityMissing):  # an answer to one caller, not an absence
                    shared.changed.notify_all()
                    continue
                self._break(shared, str(error))
                # Only the wish to stop wakes it early: another job is no reason to ask a dead server again.
                if shared.changed.wait_for(lambda: shared.closing, pause):
                    break
                pause = min(pause * 2, self._last_probe)
        self._hang_up()

    def _publish(self, publications: list[Publication]) -> tuple[BrokerError | None, bool]:
        """Connect if need be and publish; without publications, ask whether the broker answers.

        Returns the error, and whether the publications may have reached the broker all the same.
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
                publish_looking(self._broker, publications)
                crash_point("relay.published")
                self._get_ready()
        except BrokerUnavailable as error:
            self._hang_up()  # the next probe connects anew: the address, or an embedded server's life, may have changed
            return error, sent
        except BrokerError as error:  # it answered, and refused
            return error, False
        except SidestreamError as error:  # a setting that only showed when connecting
            return BrokerUnsuitable(str(error)), False
        except Exception as error:  # noqa: BLE001  # the thread must outlive a fault of ours; the rows are safe
            _log.exception("Publishing failed.", extra={"action": "relay_fault"})
            return Fault(f"Publishing failed unexpectedly ({type(error).__name__}: {error})."), sent
        return None, False

    def _get_ready(self) -> None:
        """Open the connection of :meth:`_at_once`; without it the thread goes on alone."""
        if self._quick is None:
            return
        try:
            self._quick.get_ready()
        except BrokerError as error:
            _log.info("Callers cannot publish at once: %s", error, extra={"action": "relay_not_ready"})

    def _hang_up(self) -> None:
        broker, self._broker, self._quick = self._broker, None, None
        if broker is not None:
            broker.close()

    def begin_anew(self) -> None:
        """For a forked child: forget everything; what the parent had queued is the parent's to publish."""
        closing = self._shared.closing
        self._shared = Shared(closing=closing)
        self._broker = self._quick = None


_relays: weakref.WeakSet[Relay] = weakref.WeakSet()


def _after_fork() -> None:
    for relay in list(_relays):
        relay.begin_anew()


# A forked child has no relay thread and may have copied a held lock; Odoo's prefork server forks after import.
os.register_at_fork(after_in_child=_after_fork)
