"""``sidestream jobs``: list jobs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sidestream.cli.options import LARGEST_ID, AsJson, cursor_of, number, options_of
from sidestream.cli.output import print_json, print_line, print_table
from sidestream.errors import InvalidJob
from sidestream.job.reason import Reason
from sidestream.job.states import State

MOST = 1000
"""Most jobs that one page shows."""


def jobs(
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(help="Only this state: pending, done, failed or cancelled.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action.")] = None,
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key.")] = None,
    running: Annotated[bool, typer.Option("--running", help="Only running jobs.")] = False,
    error: Annotated[str | None, typer.Option(help="Only this error, as 'sidestream failed list' shows it.")] = None,
    limit: Annotated[int, number(1, MOST, f"Maximum number of jobs, up to {MOST}.")] = 20,
    before: Annotated[int | None, number(1, LARGEST_ID, "Only ids below this, the last of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from sidestream.admin.statuses import statuses
    from sidestream.job.names import check_action, check_group, check_key, check_queue, fit_key
    from sidestream.store import locks, queries

    if state is not None and state not in {known.value for known in State}:
        raise InvalidJob(f"--state {state!r:.40} is not a state; expected {', '.join(State)}.")
    group, key = fit_key(group), fit_key(key)  # as they were stored
    for given, check in ((queue, check_queue), (action, check_action), (group, check_group), (key, check_key)):
        if given is not None:
            check(given)
    settings = options_of(context).settings()
    with cursor_of(context, settings) as cursor:
        found = queries.page(
            cursor,
            state=state,
            queue=queue,
            action=action,
            group=group,
            key=key,
            error_group=error,
            before_id=before,
            limit=limit,
            only=locks.all_running_jobs(cursor) if running else None,
        )
        status = statuses(settings, cursor, found)
    if as_json:
        print_json(
            {"jobs": [{**asdict(row), "status": status[row.id], "reason": _reason(row.reason)} for row in found]}
        )
    elif not found:
        print_line("No jobs.")
    else:
        print_table(
            ("ID", "STATUS", "QUEUE", "ACTION", "KEY", "DUE (UTC)", "FAILED ATTEMPTS", "DETAIL"),
            [
                (
                    row.id,
                    status[row.id],
                    row.queue,
                    row.action,
                    row.key,
                    row.run_at,
                    row.attempts,
                    "cancellation requested"
                    if row.cancelling
                    else _first_line(row.error or (row.reason and str(Reason.parse(row.reason)))),
                )
                for row in found
            ],
        )


def _reason(stored: str | None) -> dict[str, object] | None:
    return None if stored is None else asdict(Reason.parse(stored))


def _first_line(text: str | None) -> str | None:
    return text.partition("\n")[0][:120] if text else None
