"""A direct job for ``sidestream job`` and ``sidestream why``: it is named by its uuid and has no row."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sidestream.cli.output import fail, print_facts, print_json, print_line
from sidestream.errors import InvalidJob

if TYPE_CHECKING:
    from sidestream.admin.direct_jobs import DirectJob, FailedDirectJob
    from sidestream.settings import Settings

_SHOWN = ("action", "queue", "key", "group", "limit", "priority", "run_at", "expires_at", "args", "kwargs")


def job_id(text: str) -> int | UUID:
    """Return a row's id or a direct job's uuid; raise :class:`~sidestream.errors.InvalidJob` for anything else."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 63:
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        raise InvalidJob(
            f"{text!r:.60} is no job's id; expected a positive number, as 'sidestream jobs' shows it, or the uuid of a "
            "direct job."
        ) from None


def show(settings: Settings, uuid: UUID, *, as_json: bool) -> None:
    """Show one."""
    facts = _facts(_found(settings, uuid))
    if as_json:
        print_json(facts)
    else:
        print_facts({name.replace("_", " "): value for name, value in facts.items()})


def why(settings: Settings, uuid: UUID) -> str:
    """Return the sentence."""
    from sidestream.admin.direct_jobs import FailedDirectJob

    found = _found(settings, uuid)
    if isinstance(found, FailedDirectJob):
        error = found.error.strip().partition("\n")[0].rstrip(".") or "not told"
        at = f"{_at(found):%Y-%m-%d %H:%M:%S} UTC"
        return f"The direct job {uuid} does not wait: it failed for good at {at}, and its last error was: {error}."
    return found.why


def change(settings: Settings, uuid: UUID, wanted: str, *, as_json: bool) -> None:
    """Cancel one that waits, or retry a failed one."""
    from sidestream.admin import direct_jobs

    if wanted == "run-now":
        raise InvalidJob(f"--run-now is for jobs with a row; the direct job {uuid} can be cancelled and enqueued anew.")
    if wanted == "cancel":
        done, words = direct_jobs.cancel(settings, uuid), "is cancelled and forgotten"
        refused = f"The direct job {uuid} does not wait: it runs, is dead, is over, or never was."
    else:
        done, words = direct_jobs.retry_failed(settings, uuid), "is open again and due now"
        refused = f"The direct job {uuid} is not among the dead; list them with 'sidestream dead'."
    if not done:
        fail(refused)
    if as_json:
        print_json({"id": str(uuid), "done": True, "answer": words})
    else:
        print_line(f"The direct job {uuid} {words}.")


def _found(settings: Settings, uuid: UUID) -> DirectJob | FailedDirectJob:
    from sidestream.admin.direct_jobs import find

    found = find(settings, uuid)
    if found is None:
        fail(f"There is no direct job {uuid}: it is done, was cancelled, or never was.")
    return found


def _facts(found: DirectJob | FailedDirectJob) -> dict[str, Any]:
    from sidestream.admin.direct_jobs import FailedDirectJob

    facts: dict[str, Any] = {
        "id": str(found.uuid),
        "state": "failed" if isinstance(found, FailedDirectJob) else "pending",
    }
    if isinstance(found, FailedDirectJob):
        facts |= {"error": found.error, "ended_at": _at(found), "attempts": found.attempts, "crashes": found.crashes}
    else:
        facts |= {"place": str(found.place.value), "why": found.why}
    if found.job is not None:
        job = asdict(found.job)
        facts |= {name: job[name] for name in _SHOWN}
    return facts


def _at(dead: FailedDirectJob) -> datetime:
    return datetime.fromtimestamp(dead.at_ms / 1000, UTC)
