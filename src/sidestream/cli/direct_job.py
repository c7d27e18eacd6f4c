"""Handle direct jobs for ``sidestream job``: they are named by their uuid and have no row."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from sidestream.cli.output import answer, fail, print_facts, print_json
from sidestream.errors import InvalidJob

if TYPE_CHECKING:
    from sidestream.admin.direct_jobs import Found
    from sidestream.settings import Settings

_SHOWN = ("action", "queue", "key", "group", "limit", "priority", "run_at", "expires_at", "args", "kwargs")


def show(settings: Settings, uuid: UUID, *, as_json: bool) -> None:
    """Print one direct job."""
    facts = _facts(_found(settings, uuid))
    if as_json:
        print_json(facts)
    else:
        print_facts({name.replace("_", " "): value for name, value in facts.items()})


def why(settings: Settings, uuid: UUID) -> str:
    """Return the sentence that explains why it waits or how it ended."""
    from sidestream.admin.direct_jobs import DirectJob

    found = _found(settings, uuid)
    if isinstance(found, DirectJob):
        return found.why
    error = found.error.strip().partition("\n")[0].rstrip(".") or "unknown"
    at = f"{_at(found.at_ms):%Y-%m-%d %H:%M:%S} UTC"
    return f"The direct job {uuid} does not wait: it failed at {at}, and its last error was: {error}."


def refuse(uuid: UUID, verb: str) -> NoReturn:
    """Refuse a change that needs a row; raise :class:`~sidestream.errors.InvalidJob`."""
    raise InvalidJob(f"'job {verb}' is for jobs with a row; cancel the direct job {uuid} and enqueue it again instead.")


def change(settings: Settings, uuid: UUID, verb: str, *, as_json: bool) -> None:
    """Cancel a direct job that waits, or retry a failed one."""
    from sidestream.admin import direct_jobs

    if verb == "run-now":
        refuse(uuid, verb)
    if verb == "cancel":
        done, words = direct_jobs.cancel(settings, uuid), "is cancelled and removed"
        refused = f"The direct job {uuid} does not wait: it is running, has ended, or never existed."
    else:
        done, words = direct_jobs.retry_failed(settings, uuid), "is pending again and due now"
        refused = f"The direct job {uuid} has not failed; list failed jobs with 'sidestream failed list'."
    if not done:
        fail(refused)
    answer({"id": uuid, "done": True, "answer": words}, f"The direct job {uuid} {words}.", as_json=as_json)


def _found(settings: Settings, uuid: UUID) -> Found:
    from sidestream.admin.direct_jobs import find

    found = find(settings, uuid)
    if found is None:
        fail(f"There is no direct job {uuid}: it is done, was cancelled, or never existed.")
    return found


def _facts(found: Found) -> dict[str, Any]:
    from sidestream.admin.direct_jobs import DirectJob

    if isinstance(found, DirectJob):
        facts: dict[str, Any] = {"state": "pending", "place": str(found.place.value), "why": found.why}
    else:
        facts = {
            "state": "failed",
            "error": found.error,
            "ended_at": _at(found.at_ms),
            "attempts": found.attempts,
            "crashes": found.crashes,
        }
    job = {} if found.job is None else asdict(found.job)
    return {"id": str(found.uuid), **facts, **{name: job[name] for name in _SHOWN if name in job}}


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
