"""Take every key of a trial shard away: for measurements that brought a prefix of their own."""

from __future__ import annotations

from sidestream.broker.redis import keys
from sidestream.broker.redis.connection import RedisConnection
from sidestream.errors import SettingsError

LOT = 1000
"""Keys that one SCAN looks at."""


def erase(connection: RedisConnection, prefix: str) -> int:
    """Remove all keys that begin with ``prefix`` and return how many there were.

    Raises :class:`~sidestream.errors.SettingsError` for the shard that holds real jobs, and
    :class:`~sidestream.errors.BrokerError`'s children, among them when the user has no right to SCAN or UNLINK.
    """
    if not prefix or keys.PREFIX.startswith(prefix):
        raise SettingsError(f"The prefix {prefix!r} holds real jobs; it is never erased.")
    erased, cursor = 0, b"0"
    while True:
        cursor, found = connection.run("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", LOT)
        if found:
            erased += connection.run("UNLINK", *found)
        if cursor == b"0":
            break
    connection.run("UNLINK", f"{prefix}none")  # a user without this right is told before anything is left behind
    return erased
