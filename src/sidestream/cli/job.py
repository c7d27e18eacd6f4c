"""``sidestream job``: show one job, explain it, or change it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from sidestream.cli import direct_job
from sidestream.cli.options import NEGATIVE, AsJson, JobId, cursor_of, number, options_of, parse_job_id
from sidestream.cli.output import answer, fail, print_facts, print_json, print_line, print_table, show
from sidestream.job.reason import Reason
from sidestream.job.states import State

if TYPE_CHECKING:
    from sidestream.store.compare_and_set import CasResult

Verb = Literal["cancel", "retry", "run-now", "priority"]

job = typer.Typer(no_args_is_help=True, help="Show, explain or change one job.")


@job.command("show", context_settings=NEGATIVE)
def job_show(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Show one job with its arguments and recorded attempts."""
    from sidestream.admin.statuses import statuses
    from sidestream.store import queries

    named, settings = parse_job_id(job_id), options_of(context).settings()
    if not isinstance(named, int):
        return direct_job.show(settings, named, as_json=as_json)
    with cursor_of(context, settings) as cursor:
        found = queries.job(cursor, named)
        status = statuses(settings, cursor, [] if found is None else [found[0]])
    if found is None:
        _missing(named)
    row, payload, attempts = found
    arguments = json.loads(payload)
    facts = {**asdict(row), "status": status[named], "args": arguments["args"], "kwargs": arguments["kwargs"]}
    facts |= {"due": row.due and row.state is State.PENDING, "suspects": max(row.suspects, 0)}  # -1: see schema.sql
    reason = None if row.reason is None else Reason.parse(row.reason)
    if as_json:
        facts["reason"] = None if reason is None else asdict(reason)
        print_json({**facts, "history": [{**asdict(attempt), "detail": attempt.text} for attempt in attempts]})
        return None
    facts["reason"] = None if reason is None else str(reason)
    print_facts({name.replace("_", " "): value for name, value in facts.items()})
    if attempts:
        print_line("")
        print_table(
            ("AT (UTC)", "EVENT", "WORKER", "CHILD", "DETAIL"),
            [
                (entry.at, entry.event, entry.worker, None if entry.slot < 0 else entry.slot, entry.text)
                for entry in attempts
            ],
        )
    return None


@job.command("why", context_settings=NEGATIVE)
def job_why(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Explain in one sentence why a job waits, or how it ended."""
    from sidestream.admin.diagnosis_text import render
    from sidestream.admin.jobs import why_waiting

    named, settings = parse_job_id(job_id), options_of(context).settings()
    if isinstance(named, int):
        diagnosis = why_waiting(settings, named)
        sentence = None if diagnosis is None else render(f"Job {named}", diagnosis)
    else:
        sentence = direct_job.why(settings, named)
    if sentence is None:
        _missing(job_id)
    answer({"id": named, "why": sentence}, sentence, as_json=as_json)


def _add_command(verb: Verb, about: str) -> None:
    @job.command(verb, context_settings=NEGATIVE, help=about)
    def change(context: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
        _change(context, job_id, verb, as_json=as_json)


_add_command("cancel", "Cancel a pending job; its worker stops it if it is running.")
_add_command("retry", "Retry a failed or cancelled job now, or at its scheduled time.")
_add_command("run-now", "Make a pending job due now.")


@job.command("priority", context_settings=NEGATIVE)
def job_priority(
    context: typer.Context,
    job_id: JobId,
    priority: Annotated[int, number(0, 9, "0 (first) to 9.", "PRIORITY")],
    *,
    as_json: AsJson = False,
) -> None:
    """Change the priority of a pending job."""
    from sidestream.admin.jobs import reprioritize
    from sidestream.store import control

    named, settings = parse_job_id(job_id), options_of(context).settings()
    if not isinstance(named, int):
        direct_job.refuse(named, "priority")
    with cursor_of(context, settings) as cursor:
        written = control.set_priority(cursor, named, priority)
    if not written.applied:
        _answer(written, named, "priority")
    reprioritize(settings, named)
    answer({"id": named, "priority": priority}, f"Job {named} has priority {priority}.", as_json=as_json)


def _change(context: typer.Context, job_id: str, verb: Verb, *, as_json: bool) -> None:
    from sidestream.admin.jobs import sync_to_broker
    from sidestream.store import control, queries

    named, settings = parse_job_id(job_id), options_of(context).settings()
    if not isinstance(named, int):
        return direct_job.change(settings, named, verb, as_json=as_json)
    change = {"cancel": control.cancel, "retry": control.retry, "run-now": control.run_now}[verb]
    with cursor_of(context, settings) as cursor:
        written = change(cursor, named)
        found = queries.job(cursor, named) if verb == "retry" and written.applied else None
    said = _answer(written, named, verb)
    if found is not None and not found[0].due:
        said = (
            f"Job {named} is pending again and scheduled for {show(found[0].run_at)} UTC, as before; 'sidestream job "
            f"run-now {named}' makes it due now."
        )
    if written.applied:
        sync_to_broker(settings, [named], waiting=verb != "cancel")
    answer({"id": named, "done": written.applied, "answer": str(written)}, said, as_json=as_json)
    return None


def _answer(written: CasResult, job_id: int, verb: Verb) -> str:
    """Return what a change did, or end the command with the reason why it did nothing."""
    if written.applied:
        done = {"cancel": "is cancelled", "retry": "is pending again and due now", "run-now": "is due now"}
        return f"Job {job_id} {done[verb]}."
    if written.locked and verb == "cancel":
        return f"Cancellation of job {job_id} is requested; its worker stops it unless it finishes first."
    if written.missing:
        _missing(job_id)
    if written.locked:
        fail(f"Job {job_id} is in use by another session, most likely because it runs; try again when it has ended.")
    allowed = "failed or cancelled" if verb == "retry" else "pending"
    return fail(f"Job {job_id} is {written}; expected a job that is {allowed}.")


def _missing(job_id: int | str) -> NoReturn:
    fail(f"There is no job {job_id}; list them with 'sidestream jobs'.")
