"""A broker in memory, for one process: the model with which tests compare the Redis broker.

It needs ``sortedcontainers``, which the ``dev`` extra installs.
"""

from sidestream.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
