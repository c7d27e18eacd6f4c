"""``sidestream jobs`` and ``sidestream job``: look at jobs, and do to one what a person may do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidestream.cli import direct
from sidestream.cli.options import AsJson, options_of
from sidestream.cli.output import fail, print_facts, print_json, print_line, print_table, show
from sidestream.errors import InvalidJob
from sidestream.job.states import State, Status

if TYPE_CHECKING:
    from sidestream.settings import Settings
    from sidestream.store.compare_and_set import CasResult
    from sidestream.store.queries import Row

MOST = 1000
"""Most jobs that one page shows."""


def jobs(
    context: typer.Context,
    *,
    state: Annotated[str | None, typer.Option(help="Only this state: open, done, failed or cancelled.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only this queue.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action.")] = None,
    group: Annotated[str | None, typer.Option(help="Only this group.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key.")] = None,
    running: Annotated[bool, typer.Option("--running", help="Only jobs that run now.")] = False,
    error: Annotated[str | None, typer.Option(help="Only errors of this kind, as 'sidestream dead' shows it.")] = None,
    limit: Annotated[int, typer.Option(help=f"At most so many, up to {MOST}.")] = 20,
    before: Annotated[int | None, typer.Option(help="Only ids below this: the last id of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from sidestream.job.names import check_action, check_group, check_key, check_queue, fit_key
    from sidestream.store import locks, queries
    from sidestream.wiring.client import store_cursor

    if state is not None and state not in {known.value for known in State}:
        raise InvalidJob(f"--state {state!r:.40} is not a state; expected {', '.join(State)}.")
    group, key = fit_key(group), fit_key(key)  # as they were stored
    for given, check in ((queue, check_queue), (action, check_action), (group, check_group), (key, check_key)):
        if given is not None:
            check(given)
    if not 1 <= limit <= MOST:
        raise InvalidJob(f"--limit {limit} is not allowed; expected 1 to {MOST}.")
    with store_cursor(options_of(context).settings()) as cursor:
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
        runs = locks.running_jobs(cursor, [seen.id for seen in found if seen.state is State.PENDING])
    if as_json:
        print_json({"jobs": [_plain(seen, because(seen, runs=seen.id in runs)) for seen in found]})
    elif not found:
        print_line("No jobs.")
    else:
        print_table(
            ("ID", "STATE", "QUEUE", "ACTION", "KEY", "DUE (UTC)", "ATTEMPTS", "WHY"),
            [
                (
                    seen.id,
                    seen.state,
                    seen.queue,
                    seen.action,
                    seen.key,
                    seen.run_at,
                    seen.attempts - seen.forgiven,
                    " ".join(
                        filter(None, (because(seen, runs=seen.id in runs), _first_line(seen.error or seen.reason)))
                    ),
                )
                for seen in found
            ],
        )


def job(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id; of a direct job its uuid.")],
    *,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it; a running job is stopped by its worker.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Retry a failed or cancelled job; due now, or when it was scheduled.")
    ] = False,
    run_now: Annotated[bool, typer.Option("--run-now", help="Make a waiting job due now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one job with its attempts, or change it."""
    wanted = [name for name, given in (("cancel", cancel), ("retry", retry), ("run-now", run_now)) if given]
    if len(wanted) > 1:
        raise InvalidJob(f"--{wanted[0]} and --{wanted[1]} are both given; give one of them.")
    named = direct.job_id(job_id)
    settings = options_of(context).settings()
    if isinstance(named, int):
        if wanted:
            _change(settings, named, wanted[0], as_json=as_json)
        else:
            _show(settings, named, as_json=as_json)
    elif wanted:
        direct.change(settings, named, wanted[0], as_json=as_json)
    else:
        direct.show(settings, named, as_json=as_json)


def priority(
    context: typer.Context,
    job_id: Annotated[int, typer.Argument(metavar="ID", help="The job's id.")],
    number: Annotated[int, typer.Argument(metavar="N", help="0 (first) to 9.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Give a job that waits another priority."""
    from sidestream.admin.jobs import reprioritize
    from sidestream.job.names import check_priority
    from sidestream.store import control
    from sidestream.wiring.client import store_cursor

    check_id(job_id)
    check_priority(number)
    settings = options_of(context).settings()
    with store_cursor(settings) as cursor:
        written = control.set_priority(cursor, job_id, number)
    if not written.applied:
        _answer(written, job_id, "priority")
    reprioritize(settings, job_id)
    if as_json:
        print_json({"id": job_id, "priority": number})
    else:
        print_line(f"Job {job_id} has priority {number}.")


def because(seen: Row, *, runs: bool) -> str | None:
    """Return in what way a job is open, as far as PostgreSQL tells; None when it is over. ``runs``: by its lock."""
    if seen.state is not State.PENDING:
        return None
    if seen.cancelling:
        return "cancelling"
    if runs:
        return Status.RUNNING
    if not seen.due:
        return Status.RETRYING if seen.attempts > seen.forgiven else Status.SCHEDULED
    return Status.WAITING


def check_id(job_id: int) -> None:
    """Raise :class:`~sidestream.errors.InvalidJob` unless ``job_id`` may be a row's id."""
    if not 0 < job_id < 1 << 63:
        raise InvalidJob(f"{job_id} is no job's id; expected a positive number, as 'sidestream jobs' shows it.")


def _show(settings: Settings, job_id: int, *, as_json: bool) -> None:
    from sidestream.store import locks, queries
    from sidestream.wiring.client import store_cursor

    with store_cursor(settings) as cursor:
        found = queries.job(cursor, job_id)
        runs = bool(locks.running_jobs(cursor, [job_id]))
    if found is None:
        fail(f"There is no job {job_id}; list them with 'sidestream jobs'.")
    seen, payload, attempts = found
    facts = {**_plain(seen, because(seen, runs=runs)), **_arguments(payload)}
    if as_json:
        print_json({**facts, "history": [asdict(attempt) for attempt in attempts]})
        return
    print_facts({name.replace("_", " "): value for name, value in facts.items()})
    if attempts:
        print_line("")
        print_table(
            ("AT (UTC)", "EVENT", "WORKER", "CHILD", "DETAIL"),
            [
                (entry.at, entry.event, entry.worker, None if entry.slot < 0 else entry.slot, entry.detail)
                for entry in attempts
            ],
        )


def _change(settings: Settings, job_id: int, wanted: str, *, as_json: bool) -> None:
    from sidestream.admin.jobs import sync_to_broker
    from sidestream.store import control, queries
    from sidestream.wiring.client import store_cursor

    change = {"cancel": control.cancel, "retry": control.retry, "run-now": control.run_now}[wanted]
    with store_cursor(settings) as cursor:
        written = change(cursor, job_id)
        found = queries.job(cursor, job_id) if wanted == "retry" and written.applied else None
    answer = _answer(written, job_id, wanted)
    if found is not None and not found[0].due:
        answer = (
            f"Job {job_id} is open again and scheduled for {show(found[0].run_at)} UTC, as it was before; --run-now "
            "runs it at once."
        )
    if written.applied:
        sync_to_broker(settings, [job_id], waiting=wanted != "cancel")
    if as_json:
        print_json({"id": job_id, "done": written.applied, "answer": str(written)})
    else:
        print_line(answer)


def _answer(written: CasResult, job_id: int, wanted: str) -> str:
    """Return what a change did, or end the command with why it did nothing."""
    if written.applied:
        done = {"cancel": "is cancelled", "retry": "is open again and due now", "run-now": "is due now"}
        return f"Job {job_id} {done[wanted]}."
    if written.locked and wanted == "cancel":
        return f"Job {job_id} is running; its worker is asked to stop it."
    if written.missing:
        why = f"There is no job {job_id}; list them with 'sidestream jobs'."
    elif written.locked:
        why = f"Job {job_id} is in use by another session, most likely because it runs; try again when it has ended."
    else:
        allowed = "failed or cancelled" if wanted == "retry" else "pending"
        why = f"Job {job_id} is {written}; only a job that is {allowed} can be changed so."
    return fail(why)


def _plain(seen: Row, why: str | None) -> dict[str, Any]:
    return {**asdict(seen), "because": why}


def _arguments(payload: str) -> dict[str, Any]:
    found = json.loads(payload)
    return {"args": found["args"], "kwargs": found["kwargs"]}


def _first_line(text: str | None) -> str | None:
    return text.partition("\n")[0][:120] if text else None
