"""``sidestream failed``: list failed jobs by error, and retry or discard many at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from sidestream.cli.options import AsJson, options_of, who
from sidestream.cli.output import answer, complain, fail, print_json, print_line, print_table
from sidestream.errors import BrokerError, SettingsError

if TYPE_CHECKING:
    from sidestream.settings import Settings
    from sidestream.store.bulk import Filter

failed = typer.Typer(no_args_is_help=True, help="List, retry or discard failed jobs.")

Error = Annotated[str | None, typer.Option(help="Only this error, as 'sidestream failed list' shows it.")]
Action = Annotated[str | None, typer.Option(help="Only this action.")]
Queue = Annotated[str | None, typer.Option(help="Only this queue.")]
Group = Annotated[str | None, typer.Option(help="Only this group.")]
Everything = Annotated[bool, typer.Option("--all", help="All failed jobs; required without a filter.")]


@failed.command("list")
def failed_list(
    context: typer.Context, *, action: Action = None, queue: Queue = None, group: Group = None, as_json: AsJson = False
) -> None:
    """List failed jobs grouped by error, the most frequent first."""
    from sidestream.admin.direct_jobs import error_groups
    from sidestream.store import bulk
    from sidestream.wiring.client import store_cursor, store_url

    settings, only = options_of(context).settings(), _filter(None, action, queue, group)
    found: list[bulk.ErrorGroup] = []
    if store_url(settings) is not None:
        with store_cursor(settings) as cursor:
            found += bulk.error_groups(cursor, only)
    with _without_redis(settings):
        found += error_groups(settings, only)
    found.sort(key=lambda one: -one.count)
    if as_json:
        print_json(
            {
                "errors": [
                    {
                        "error": one.error_group,
                        "count": one.count,
                        "actions": list(one.actions),
                        "direct": not isinstance(one.newest_id, int),
                        "newest": {"id": one.newest_id, "error": one.newest_error, "at": one.newest_at},
                    }
                    for one in found
                ]
            }
        )
    elif not found:
        print_line("No failed jobs.")
    else:
        print_table(
            ("COUNT", "ERROR", "ACTIONS", "NEWEST", "AT (UTC)"),
            [(one.count, one.error_group, ", ".join(one.actions), one.newest_id, one.newest_at) for one in found],
        )


def _add_command(name: str, about: str, *, again: bool) -> None:
    """Add the command that retries or discards failed jobs."""

    @failed.command(name, help=about)
    def change(
        context: typer.Context,
        *,
        error: Error = None,
        action: Action = None,
        queue: Queue = None,
        group: Group = None,
        everything: Everything = False,
        as_json: AsJson = False,
    ) -> None:
        only = _narrowed(error, action, queue, group, everything=everything)
        count = _in_batches(context, only, again=again) + _direct(context, only, again=again)
        if not count and not as_json:
            fail("No failed job matches; list them with 'sidestream failed list'.")
        jobs, verb = ("1 job", "is") if count == 1 else (f"{count} jobs", "are")
        done = "pending again and due now" if again else "cancelled"
        answer({"retried" if again else "discarded": count}, f"{jobs} {verb} {done}.", as_json=as_json)


_add_command("retry", "Retry failed jobs now, with all their attempts.", again=True)
_add_command("discard", "Mark failed jobs as cancelled, and remove failed direct jobs.", again=False)


def _in_batches(context: typer.Context, only: Filter, *, again: bool) -> int:
    """Retry or discard one batch of rows after another, each in its own transaction; return how many."""
    from sidestream.admin.jobs import sync_to_broker
    from sidestream.store import bulk
    from sidestream.wiring.client import store_cursor, store_url

    settings = options_of(context).settings()
    if store_url(settings) is None:
        return 0  # there are only direct jobs
    count, after = 0, 0
    while True:
        with store_cursor(settings) as cursor:
            if again:
                batch = bulk.retry_failed(cursor, only, after_id=after)
            else:
                batch = bulk.discard_failed(cursor, only, by=who(), after_id=after)
        count += len(batch)
        if batch and again:  # Redis holds nothing of a failed job
            sync_to_broker(settings, [row.id for row in batch], waiting=True)
        if len(batch) < bulk.LOT:
            return count
        after = batch[-1].id


def _direct(context: typer.Context, only: Filter, *, again: bool) -> int:
    """Change the failed direct jobs; return how many."""
    from sidestream.admin.direct_jobs import change_failed

    settings, count = options_of(context).settings(), 0
    with _without_redis(settings):
        for changed in change_failed(settings, only, again=again):
            count += changed
    return count


@contextmanager
def _without_redis(settings: Settings) -> Iterator[None]:
    """Continue with the rows while Redis is unavailable, and say so."""
    from sidestream.wiring.client import store_url

    try:
        yield
    except (BrokerError, SettingsError) as error:
        if store_url(settings) is None:
            raise
        complain(f"Failed direct jobs, which only Redis holds, are left out: {error}")


def _narrowed(
    error: str | None, action: str | None, queue: str | None, group: str | None, *, everything: bool
) -> Filter:
    narrowed = any(one is not None for one in (error, action, queue, group))
    if narrowed == everything:
        raise SettingsError(
            "No filter is given; give --error, --action, --queue or --group, or --all for every failed job."
            if not narrowed
            else "--all and a filter are both given; leave one of them out."
        )
    return _filter(error, action, queue, group)


def _filter(error: str | None, action: str | None, queue: str | None, group: str | None) -> Filter:
    from sidestream.job.names import check_action, check_group, check_queue
    from sidestream.store.bulk import Filter

    return Filter(
        error,
        None if action is None else check_action(action),
        None if queue is None else check_queue(queue),
        None if group is None else check_group(group),
    )
