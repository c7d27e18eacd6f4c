"""Run jobs in the caller's thread, for tests and benchmarks.

It uses the broker, executor, runner and outcome writer of a real worker. It starts no processes, so hard limits and
crashes are not covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from sidestream.broker.protocol import Broker, Delivery
from sidestream.executors.protocol import Acquired, Executor
from sidestream.job.outcome import Done, Outcome
from sidestream.job.rules import Rules
from sidestream.worker import wire
from sidestream.worker.options import WorkerOptions
from sidestream.worker.outcome_writer import OutcomeWriter
from sidestream.worker.runner import Runner
from sidestream.worker.settlement import Settlement
from sidestream.worker.state import WorkerState


class EmbeddedWorker:
    """Claims and runs jobs in the calling thread.

    Args:
        broker: Where jobs are claimed.
        executor: Runs them; loaded here.
        options: ``worker``, ``lanes`` and ``database`` are used, and the run folder is not.
        connect: Opens the connection on which failures are written; None if all jobs are direct jobs.
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
        self._outcome_writer = OutcomeWriter(self._state, connect)
        self._runner = Runner(executor)
        self._state.actions = {facts.tag: facts for facts in executor.load()}
        executor.begin(0)
        for database in {bytes.fromhex(lane.partition(":")[0]) for lane in options.lanes}:
            broker.configure(database, Rules())  # version 0: rules that were set before stay

    def run_until_idle(self, *, most: int = 10_000) -> list[tuple[Delivery, Outcome]]:
        """Run all claimable jobs and their follow-up jobs; return deliveries with their outcomes.

        Jobs that are not due keep waiting. ``most`` bounds the number of deliveries.
        """
        ended: list[tuple[Delivery, Outcome]] = []
        while len(ended) < most:
            claimed = self._broker.claim(self._options.worker, self._options.lanes, free=1)
            if not claimed:
                break
            ended.append((claimed[0], self.run_one(claimed[0])))
        return ended

    def run_one(self, delivery: Delivery, *, run_alone: bool = False) -> Outcome:
        """Run one claimed delivery and settle it."""
        seen: list[Acquired] = []
        item = wire.Item(delivery.reference, delivery.payload, delivery.attempts, run_alone)
        outcome, acquired = self._runner.run(item, seen.append)
        if isinstance(outcome, Done):
            self._publish(acquired)
            Settlement(settle=True).apply(self._broker, delivery)
            return outcome
        job_report = wire.JobReport(0, outcome, seen[-1].attempts if seen else -1)
        settlement = self._outcome_writer.reported(delivery, job_report)
        if settlement.run_alone:
            self._outcome_writer.started(delivery, 0, 0.0)
            return self.run_one(delivery, run_alone=True)
        releases = settlement.apply(self._broker, delivery)
        if settlement.fail is not None:
            self._outcome_writer.failed(delivery, settlement.fail, settlement.detail)
        if releases > 0:
            self._outcome_writer.released(delivery, releases, settlement.release.reason)
        return outcome

    def close(self) -> None:
        """Close the connections."""
        self._executor.close()
        self._outcome_writer.close()

    def _publish(self, acquired: Acquired | None) -> None:
        if acquired is not None and acquired.follow_ups:
            self._broker.publish(acquired.follow_ups)
