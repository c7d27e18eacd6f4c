"""The next release of the application: the actions of :mod:`tests.acceptance.worker_app` and one more."""

from __future__ import annotations

from sidestream import Context
from tests.acceptance.worker_app import actions

__all__ = ["actions"]


@actions.action("new.in.next")
def new_in_next(context: Context) -> None:
    context.cursor.execute("INSERT INTO effect (job_id, attempt, what) VALUES (%s, 1, 'next')", (context.job_id,))
