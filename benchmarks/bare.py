"""The bare baselines: the minimum that any program must do on the same server, in separate processes.

Each function is the body of a process. Nothing is checked, counted or kept alive here: that is the point.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import redis
from app import EFFECT
from stamps import Stamps

from sidestream.process import die_with_parent
from sidestream.store import acquire, outcomes

GROUP = "bare"
COUNT = 64
"""Entries in one read of the draining loop; the best of those tried elsewhere."""
_spawn = multiprocessing.get_context("spawn")


@contextmanager
def processes(body: Callable[..., None], each: Sequence[tuple[Any, ...]]) -> Iterator[list[int]]:
    """Run ``body(*arguments)`` in a process for each of ``each``; give their pids, and end them."""
    started = [_spawn.Process(target=_mortal, args=(os.getpid(), body, *arguments), daemon=True) for arguments in each]
    try:
        for process in started:
            process.start()
        yield [process.pid for process in started if process.pid is not None]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.join()


def _mortal(parent: int, body: Callable[..., None], *arguments: Any) -> None:
    die_with_parent(parent)
    body(*arguments)


def hop(url: str, stream: str, ledger: Path) -> None:
    """Wait in a blocked XREADGROUP for one entry after another, and stamp each as soon as it is there."""
    client, stamps = redis.Redis.from_url(url, protocol=2), Stamps(ledger)
    while True:
        reply: Any = client.xreadgroup(GROUP, "one", {stream: ">"}, count=1, block=1000)
        if not reply:
            continue
        at = time.time()
        ((_, ((entry, fields),)),) = reply
        stamps.hit(int(fields[b"n"]), at)
        client.xack(stream, GROUP, entry)
        client.xdel(stream, entry)


def drain(url: str, stream: str, consumer: str, ledger: Path) -> None:
    """Read 64 entries, run the empty job of each, acknowledge and delete them together."""
    client, stamps = redis.Redis.from_url(url, protocol=2), Stamps(ledger)
    while True:
        reply: Any = client.xreadgroup(GROUP, consumer, {stream: ">"}, count=COUNT, block=1000)
        if not reply:
            continue
        ((_, entries),) = reply
        for _, fields in entries:
            stamps.hit(json.loads(fields[b"p"])["record_id"], time.time())
        ids = [entry for entry, _ in entries]
        pipe = client.pipeline(transaction=False)
        pipe.xack(stream, GROUP, *ids)
        pipe.xdel(stream, *ids)
        pipe.execute()


def transactions(dsn: str, ledger: Path, pairs: Sequence[tuple[int, int]]) -> None:
    """Open each row with the store's own statement, write the same effect, finish it, commit: and nothing else."""
    stamps = Stamps(ledger)
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.cursor()
        for number, row_id in pairs:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            acquired = acquire.acquire_job(cursor, row_id)
            assert isinstance(acquired, acquire.Acquired), acquired
            at = time.time()
            cursor.execute(EFFECT, {"number": number, "note": "done in the background"})
            outcomes.finish(cursor, row_id)
            cursor.execute("COMMIT")
            stamps.hit(number, at)
        signal.pause()  # stay, so that what was used up can be read; the caller ends this process
