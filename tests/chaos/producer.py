"""The enqueuing process: transactions of every kind, as fast as the workers take them, until SIGTERM.

Each transaction writes what it promises (:mod:`tests.chaos.ledger`) together with its jobs; some are rolled back,
whole or to a savepoint, and promise nothing. One process, one thread, and keys of its own: the ids of one key are in
the order of their commits, which is the order that promise 4 speaks of.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psycopg

from sidestream import Jobs
from sidestream.errors import BrokerError, StoreError
from tests.chaos import ledger
from tests.chaos.app import actions, folder

MODULE = "tests.chaos.producer"
"""The name of this module, which is "__main__" where it runs."""
BACKLOG = 40
"""Pending jobs above which the producer waits for the workers."""
KEYS = 3
LOOK_EVERY = 5
"""Transactions between two looks at the backlog."""


class _Refused(Exception):
    """Ends a transaction that is meant to be rolled back."""


class Producer:
    """Makes transactions of the kinds that ``weights`` names."""

    def __init__(self, weights: dict[str, float], seed: str, pace: float) -> None:
        self._random = random.Random(seed)
        self._name = f"{seed}-{os.getpid()}"
        self._pace = pace
        self._jobs = Jobs(actions=actions)
        self._connection: psycopg.Connection[Any] | None = None
        self._count = 0
        self._stopped = False
        makers: dict[str, Callable[[], None]] = {
            "plain": lambda: self._several({}),
            "keyed": self._keyed,
            "fail": lambda: self._several({"fail": True}),
            "crash": lambda: self._several({"crash": True}, most=1),
            "release": lambda: self._several({"release": True}, most=2),
            "follow": lambda: self._several({"follow": 2}, most=1),
            "slow": lambda: self._several({"sleep": self._random.uniform(0.05, 0.5)}, most=2),
            "parts": lambda: self._several({}, action="chaos.parts"),
            "steps": lambda: self._several({"sleep": 0.02}, action="chaos.steps"),
            "delayed": lambda: self._several({}, delay=self._random.uniform(0.1, 1.5)),
            "unpublished": self._unpublished,
            "rollback": self._rolled_back,
            "savepoint": self._savepoint,
            "direct": lambda: self._direct("chaos.direct"),
            "direct_plain": lambda: self._direct("chaos.plain"),
        }
        unknown = set(weights) - set(makers)
        if unknown:
            raise SystemExit(f"There is no traffic of the kind {sorted(unknown)}; known are: {sorted(makers)}.")
        self._kinds = [makers[kind] for kind in weights]
        self._weights = list(weights.values())

    def run(self) -> None:
        """Work until SIGTERM; outages of either server are waited for."""
        signal.signal(signal.SIGTERM, self._stop)
        while not self._stopped:
            make = self._random.choices(self._kinds, self._weights)[0]
            try:
                make()
                self._throttle()
            except (psycopg.Error, StoreError):
                # Whether it was committed does not matter: promised and jobs stand or fall together.
                self._disconnect()
                time.sleep(0.05)
        self._disconnect()
        self._jobs.close()

    def _stop(self, signum: int, frame: object) -> None:
        self._stopped = True

    def _throttle(self) -> None:
        time.sleep(self._pace)
        if self._count % LOOK_EVERY:
            return
        while not self._stopped:
            cursor = self._connected().execute("SELECT count(*) FROM sidestream_job WHERE state = 'pending'")
            [(backlog,)] = cursor.fetchall()
            self._connected().commit()
            if backlog <= BACKLOG:
                return
            time.sleep(0.02)

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = psycopg.connect(os.environ["SIDESTREAM_DATABASE_URL"], connect_timeout=5)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _token(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _add(
        self, tx: Any, plan: dict[str, Any], *, action: str = "chaos.effect", key: str | None = None, delay: float = 0.0
    ) -> None:
        token = self._token()
        args = (token, key, plan) if action == "chaos.effect" else (token, plan)
        job_id = tx.enqueue(action, args, key=key, delay=delay or None)
        ledger.promise(self._connected(), token, job_id, key)

    def _several(self, plan: dict[str, Any], *, most: int = 3, **options: Any) -> None:
        with self._jobs.transaction(self._connected()) as tx:
            for _ in range(self._random.randint(1, most)):
                self._add(tx, plan, **options)

    def _keyed(self) -> None:
        plan = self._random.choice(({}, {}, {}, {"fail": True}, {"sleep": 0.03}))
        with self._jobs.transaction(self._connected()) as tx:
            for _ in range(self._random.randint(1, 3)):
                self._add(tx, plan, key=f"{self._name}/{self._random.randrange(KEYS)}")

    def _unpublished(self) -> None:
        """Enqueue in the caller's own transaction, so that only the reconciler publishes the jobs."""
        connection = self._connected()
        token = self._token()
        job_id = self._jobs.enqueue("chaos.effect", (token, None, {}), connection=connection)
        ledger.promise(connection, token, job_id, None)
        connection.commit()

    def _rolled_back(self) -> None:
        try:
            with self._jobs.transaction(self._connected()) as tx:
                self._add(tx, {})
                self._add(tx, {}, key=f"{self._name}/0")
                raise _Refused
        except _Refused:
            return

    def _savepoint(self) -> None:
        connection = self._connected()
        with self._jobs.transaction(connection) as tx:
            self._add(tx, {})
            try:
                with connection.transaction():
                    self._add(tx, {})
                    raise _Refused
            except _Refused:
                self._add(tx, {})

    def _direct(self, action: str) -> None:
        token = self._token()
        notes = folder() / ledger.ACCEPTED
        ledger.note(notes, f"intent {token}")
        plan = self._random.choice(({}, {}, {"fail": True}, {"sleep": 0.02}))
        try:
            uuid = self._jobs.enqueue_direct(action, (token, plan))
        except BrokerError:
            return  # it may or may not have arrived: nothing was promised
        ledger.note(notes, f"accepted {token} {uuid.hex}")


def main() -> None:
    """Produce what the environment says."""
    Producer(
        json.loads(os.environ["CHAOS_TRAFFIC"]), os.environ["CHAOS_SEED"], float(os.environ.get("CHAOS_PACE", "0.005"))
    ).run()


if __name__ == "__main__":
    main()
