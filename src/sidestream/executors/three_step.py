"""Run three-step actions: read in one transaction, call outside any, write in another.

Use them for slow API calls: no row is locked and no snapshot is held while the remote service works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ThreeSteps:
    """The functions of a three-step action, called in this order."""

    #: ``read(context, *args, **kwargs)`` in a first transaction; returns the data for the call. It may not write.
    read: Callable[..., Any]
    #: ``call(context, request)`` outside any transaction; send ``context.idempotency_key(...)`` with it.
    call: Callable[..., Any]
    #: ``write(context, request, answer)`` in the transaction that commits "done".
    write: Callable[..., None]
