"""The whole path in one thread of the caller's process: for tests of applications, and for a first try.

The same broker, executor, runner and books as the real worker; no processes, so no hard limits and no crash counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from sidestream.broker.protocol import Broker, Delivery
from sidestream.executors.protocol import Executor, Opened
from sidestream.job.outcome import Done, Outcome
from sidestream.job.rules import Rules
from sidestream.worker import wire
from sidestream.worker.options import WorkerOptions
from sidestream.worker.outcome_writer import Bookkeeper
from sidestream.worker.runner import Runner
from sidestream.worker.settlement import Handling
from sidestream.worker.state import WorkerState


class EmbeddedWorker:
    """Claims and runs jobs in the calling thread.

    Args:
        broker: Where jobs are claimed.
        executor: Runs them; loaded here.
        options: ``supervisor``, ``lanes`` and ``database`` are used; its folder is not touched.
        connect: Opens the connection on which failures are written; None for direct jobs only.
    """

    def __init__(
        self,
        broker: Broker,
        executor: Executor,
        options: WorkerOptions,
        connect: Callable[[], psycopg.Connection[Any]] | None = None,
    ) -> None:
        self._broker = broker
        self._executor = executor
        self._options = options
        self._state = WorkerState(options)
        self._books = Bookkeeper(self._state, connect)
        self._runner = Runner(executor)
        self._state.actions = {facts.tag: facts for facts in executor.load()}
        executor.begin(0)
        for database in {bytes.fromhex(lane.partition(":")[0]) for lane in options.lanes}:
            broker.configure(database, Rules())  # of version 0: those that somebody set stay

    def run_until_idle(self, *, most: int = 10_000) -> list[tuple[Delivery, Outcome]]:
        """Run what is claimable now, and what that enqueues, until nothing is; return deliveries with their outcomes.

        Jobs that wait for a later time stay waiting. ``most`` bounds the number of deliveries.
        """
        ended: list[tuple[Delivery, Outcome]] = []
        while len(ended) < most:
            claimed = self._broker.claim(self._options.supervisor, self._options.lanes, free=1)
            if not claimed:
                break
            ended.append((claimed[0], self.run_one(claimed[0])))
        return ended

    def run_one(self, delivery: Delivery, *, careful: bool = False) -> Outcome:
        """Run one claimed delivery and settle it."""
        seen: list[Opened] = []
        outcome, opened = self._runner.run(
            delivery.reference, delivery.payload, attempts=delivery.attempts, careful=careful, on_opened=seen.append
        )
        if isinstance(outcome, Done):
            self._publish(opened)
            Handling(settle=True).tell(self._broker, self._options.lanes, delivery)
            return outcome
        finding = wire.Finding(0, outcome, seen[-1].attempts if seen else -1)
        handling = self._books.found(delivery, finding)
        if handling.alone:
            self._books.started(delivery, 0, 0.0)
            return self.run_one(delivery, careful=True)
        releases = handling.tell(self._broker, self._options.lanes, delivery)
        if handling.bury is not None:
            self._books.buried(delivery, handling.bury, handling.detail)
        if releases > 0:
            self._books.released(delivery, releases, handling.reason)
        return outcome

    def close(self) -> None:
        """Close the connections."""
        self._executor.close()
        self._books.close()

    def _publish(self, opened: Opened | None) -> None:
        if opened is not None and opened.follow_ups:
            self._broker.publish(wire.publications(opened.follow_ups, self._options.database))
