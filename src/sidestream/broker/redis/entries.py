"""Turn the answers of claims and hand-offs into deliveries (hot path)."""

from __future__ import annotations

from collections.abc import Sequence

from sidestream.broker.protocol import Delivery, Lease
from sidestream.broker.redis.functions import Functions
from sidestream.job.reference import SIZES

TOKEN_SIZE = 16
"""An entry is a token of 16 digits, then the reference (``lua/shared/lease.lua``)."""


class EntryReader:
    """Reads entries of ``grant`` (``lua/shared/lease.lua``) and quarantines foreign bytes."""

    def __init__(self, functions: Functions) -> None:
        """Read entries of the shard of ``functions``."""
        self._functions = functions
        self._lanes: dict[bytes, str] = {}

    def deliveries(self, words: Sequence[bytes], worker: str, count: int = 1) -> list[Delivery]:
        """Return a delivery for each entry, meta and payload (or b"") in ``words``."""
        found: list[Delivery] = []
        names = self._lanes
        each = iter(words)
        for entry, meta, payload in zip(each, each, each, strict=True):
            ready, priority, name, *counts = meta.split()
            lane = names.get(name)
            if lane is None:
                lane = names[name] = name.decode()
            lease = Lease(entry, worker, count)
            attempts, crashes, releases = map(int, counts) if counts else (0, 0, 0)
            numbers = (attempts, crashes, releases, int(priority))
            found.append(Delivery(entry[TOKEN_SIZE:], lane, lease, int(ready), payload or None, *numbers))
        return found

    def handed(self, elements: Sequence[bytes], worker: str) -> list[Delivery]:
        """Return the deliveries in elements of a hand-off list (entry, meta, line feed, payload)."""
        words: list[bytes] = []
        quarantine: list[bytes] = []
        for element in elements:
            size = SIZES.get(element[TOKEN_SIZE]) if len(element) > TOKEN_SIZE else None
            end = TOKEN_SIZE + (size or 0)
            meta, line_feed, payload = element[end:].partition(b"\n")
            if size and line_feed and meta.split(b" ", 1)[0].isdigit():
                words += (element[:end], meta, payload)
            else:
                quarantine.append(element)
        if quarantine:
            self._functions.call("quarantine", *quarantine)
        return self.deliveries(words, worker)
