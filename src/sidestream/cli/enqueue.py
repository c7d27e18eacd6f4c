"""``sidestream enqueue``: enqueue one job from a shell."""

from __future__ import annotations

import json
from typing import Annotated, Any
from uuid import UUID

import typer

from sidestream.cli.options import AsJson, actions_of, number, options_of, seconds
from sidestream.cli.output import answer
from sidestream.errors import InvalidJob

ANSWER = 1.0
"""Seconds that Redis has to answer: longer than a request may take, because this process first has to connect."""
DIRECT_TIMEOUT = 5.0
"""Seconds that --direct waits for Redis: longer than a request may, because the embedded server may have to start."""


def enqueue(
    context: typer.Context,
    action: Annotated[str, typer.Argument(help="Name of the action.")],
    *,
    arg: Annotated[list[str] | None, typer.Option(help="A positional argument as JSON; may be repeated.")] = None,
    kwarg: Annotated[list[str] | None, typer.Option(help="A named argument as NAME=JSON; may be repeated.")] = None,
    queue: Annotated[str | None, typer.Option(help="Queue of the job; default: the action's.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Ordering key: jobs with the same key run one at a time, in order.")
    ] = None,
    priority: Annotated[int | None, number(0, 9, "0 (first) to 9; default: the action's, else 5.")] = None,
    group: Annotated[str | None, typer.Option(help="Fairness group, for example a tenant.")] = None,
    limit: Annotated[str | None, typer.Option(help="Limit key: RULE or RULE:VALUE.")] = None,
    unique: Annotated[
        str | None, typer.Option(help="Unique key: pending jobs with the same text are duplicates.")
    ] = None,
    unique_until: Annotated[str | None, typer.Option(help="started, done (default) or window.")] = None,
    unique_for: Annotated[str | None, typer.Option(help="Length of the window, for example 1h.")] = None,
    on_conflict: Annotated[str | None, typer.Option(help="return (default), replace or newest.")] = None,
    delay: Annotated[str | None, typer.Option(help="Time until the job is due, for example 15s or 2h.")] = None,
    run_at: Annotated[str | None, typer.Option(help="Time at which the job is due, in ISO 8601.")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Time zone of times without an offset, for example Europe/Brussels.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="Cancel the job when it has not started so long after it was due.")
    ] = None,
    expires_at: Annotated[str | None, typer.Option(help="Cancel the job when it has not started by this time.")] = None,
    direct: Annotated[bool, typer.Option("--direct", help="Enqueue to Redis only, without a row.")] = False,
    uuid: Annotated[
        str | None, typer.Option("--id", help="With --direct: uuid under which repeated calls enqueue once.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Enqueue one job and print its id."""
    from sidestream.wiring.client import Jobs, store_connection

    settings = options_of(context).settings()
    if settings.odoo_config is not None:
        raise InvalidJob(
            f"The action {action!r:.80} is not enqueued from here: its declaration, which is in Odoo, says as which "
            "user and with which key it runs. Call records.enqueue() there, in odoo shell for example."
        )
    args = [_json("--arg", text) for text in arg or ()]
    kwargs = dict(map(_pair, kwarg or ()))
    options: dict[str, Any] = {
        "queue": queue,
        "key": key,
        "priority": priority,
        "group": group,
        "limit": limit,
        "unique": unique,
        "unique_until": unique_until,
        "unique_for": unique_for and seconds("--unique-for", unique_for),
        "on_conflict": on_conflict,
        "delay": delay and seconds("--delay", delay),
        "run_at": run_at,
        "time_zone": time_zone,
        "expires_in": expires_in and seconds("--expires-in", expires_in),
        "expires_at": expires_at,
    }
    if uuid is not None and not direct:
        raise InvalidJob("--id is for --direct jobs; a row's id comes from the database.")
    made: object
    published = True
    patient = settings.model_copy(update={"publish_timeout": max(settings.publish_timeout, ANSWER)})
    with Jobs(patient, actions=actions_of(settings)) as client:
        if direct:
            made = client.enqueue_direct(action, args, kwargs, id=_uuid(uuid), timeout=DIRECT_TIMEOUT, **options)
        else:
            with store_connection(settings) as connection:
                transaction = client.transaction(connection)
                with transaction:
                    made = transaction.enqueue(action, args, kwargs, **options)
                published = transaction.published
    later = "" if published else "; Redis did not answer in time, so a worker finds it in PostgreSQL within seconds"
    answer({"id": made, "published": published}, f"Enqueued job {made}{later}.", as_json=as_json)


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidJob(
            f"{option} {text!r:.60} is not JSON ({error}); a text needs its own quotes, for example '\"el\"'."
        ) from error


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InvalidJob(f"--kwarg {text!r:.60} is not of the form NAME=JSON, for example lang='\"el\"'.")
    return name, _json(f"--kwarg {name}", value)


def _uuid(text: str | None) -> UUID | None:
    if text is None:
        return None
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidJob(f"--id {text!r:.60} is not a uuid.") from error
