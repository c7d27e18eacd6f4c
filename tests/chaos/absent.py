"""A worker that claims jobs and then goes silent, so that others have something to reclaim."""

from __future__ import annotations

import itertools

from sidestream.broker.protocol import lane
from sidestream.errors import BrokerError
from sidestream.settings import Settings
from sidestream.store import schema
from sidestream.wiring.client import build_broker
from tests.chaos.world import World


class Absentee:
    """Each claim is made under another name, so that each is a host that was lost."""

    def __init__(self, world: World) -> None:
        settings = Settings(database_url=world.dsn, redis_url=world.redis.url)
        self._broker = build_broker(settings)
        with world.connection().cursor() as cursor:
            self._lanes = (lane(schema.identify(cursor).tag, "default"),)
        world.connection().commit()
        self._names = (f"absent-{number}" for number in itertools.count())

    def claim(self) -> int:
        """Claim one job, if Redis answers, and forget it; return how many were claimed."""
        try:
            self._broker.generation()
            return len(self._broker.claim(next(self._names), self._lanes, free=1))
        except BrokerError:
            return 0  # it was killed a moment ago; the next claim will do

    def close(self) -> None:
        """Close the connection."""
        self._broker.close()
