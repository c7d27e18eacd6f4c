"""Three-step actions: read in one transaction, call outside any, write and "done" in another.

The form for slow API calls: no row is locked and no snapshot is held open while a courier thinks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ThreeSteps:
    """The parts of a three-step action, called in this order."""

    #: ``read(context, *args, **kwargs)`` in a first transaction; returns what the call needs. It may not write.
    read: Callable[..., Any]
    #: ``call(context, request)`` outside any transaction; send ``context.idempotency_key(...)`` along.
    call: Callable[..., Any]
    #: ``write(context, request, answer)`` in the transaction that ends with "done".
    write: Callable[..., None]
