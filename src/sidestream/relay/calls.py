"""What the relay asks of a broker, and what the broker's errors mean to the caller of a direct job."""

from __future__ import annotations

from collections.abc import Sequence

from sidestream.broker.protocol import Broker, Publication
from sidestream.errors import BrokerError, BrokerUnavailable, StaleGeneration
from sidestream.job.reference import Reference

LOOKS = 3
"""How often in a row a generation may move under one publish."""


class Fault(BrokerError):
    """Publishing failed for a reason that is our own, so repeating it does not help."""


def publish_looking(broker: Broker, publications: Sequence[Publication]) -> None:
    """Publish, in whatever generation there is by then."""
    for _ in range(LOOKS):
        try:
            broker.publish(publications)
            return
        except StaleGeneration:  # emptied or replaced: nothing was written, so look again and repeat
            ensure_generation(broker)
    raise BrokerUnavailable(f"The broker's contents were replaced {LOOKS} times while it was published to.")


def ensure_generation(broker: Broker) -> None:
    """Learn the generation, or begin one."""
    if not broker.generation().number:
        broker.begin_generation()


def late(seconds: float) -> BrokerUnavailable:
    """Return the error of a broker that was silent for so long."""
    return BrokerUnavailable(f"The broker did not answer within {seconds:g} s.")


def answer(error: BrokerError, publication: Publication, *, sent: bool) -> BrokerError:
    """Return ``error`` with what it means for a direct job."""
    uuid = Reference.unpack(publication.reference).uuid
    meaning = (
        f"The job may have been enqueued; enqueueing it again with id={uuid} is safe."
        if sent
        else f"The job was not enqueued; enqueue it again, with id={uuid} if you like."
    )
    kind = BrokerError if isinstance(error, Fault) else type(error)
    return kind(f"{error} {meaning}")
