"""The demo's actions: what a shop would do in the background."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sidestream import Actions

if TYPE_CHECKING:
    from sidestream import Context

actions = Actions()


@actions.action("invoice.print")
def print_invoice(context: Context, order: int, seconds: float) -> None:
    """Take as long as a PDF takes, then write that it is printed: committed together with the job's "done"."""
    with Path(os.environ["DEMO_STARTS"]).open("a") as starts:
        starts.write(f"{order} {os.getpid()} {time.time()}\n")
    time.sleep(seconds)
    context.cursor.execute("INSERT INTO printed (order_id) VALUES (%s)", (order,))


@actions.action("courier.announce")
def announce(context: Context, order: int) -> None:
    """Tell the courier; one at a time per carrier, in the order of the orders."""
    context.cursor.execute("INSERT INTO announced (order_id) VALUES (%s)", (order,))
