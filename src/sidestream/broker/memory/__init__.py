"""The memory broker: the contract in one process. Unit tests run on it, and the Redis broker is compared with it."""

from sidestream.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
