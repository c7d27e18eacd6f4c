"""A diagnosis as one English sentence, for the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sidestream.admin.diagnosis import Code, Diagnosis, shorten
from sidestream.job.reason import Reason
from sidestream.job.rules import Scope


def render(subject: str, diagnosis: Diagnosis) -> str:
    """Return the sentence about ``subject``, such as "Job 7"."""
    return f"{subject} {_TEXTS[diagnosis.code](diagnosis.params)}."


def _ended(params: Mapping[str, Any]) -> str:
    return "" if params["at"] is None else f" at {_moment(params['at'])}"


def _cancelled(params: Mapping[str, Any]) -> str:
    because = f", because: {shorten(str(params['reason']))}" if params["reason"] is not None else ""
    return f"does not wait: it was cancelled{_ended(params)}{because}"


def _retrying(params: Mapping[str, Any]) -> str:
    times = "once" if params["failures"] == 1 else f"{params['failures']} times"
    error = params["error"] or "not told"
    return f"failed {times} and is tried again at {_moment(params['at'])}, and its last error was: {error}"


def _snoozed(params: Mapping[str, Any]) -> str:
    reason: Reason | None = params["reason"]
    message = None if reason is None else str(reason.params.get("message", reason))
    return f"snoozed itself until {_moment(params['at'])}, because: {shorten(message) or 'not told'}"


def _paused(params: Mapping[str, Any]) -> str:
    what = " of ".join(f"the {one} {params[one]!r}" for one in ("queue", "action", "group") if params[one] is not None)
    by = f" by {params['by']}" if params["by"] else ""
    note = f" ({params['note']})" if params["note"] else ""
    return f"waits because {what} was paused{by} at {_moment(params['at'])}{note}"


def _free(params: Mapping[str, Any]) -> str:
    busy = params["busy"]
    return "waits for a free worker" + (f" ({busy[0]} of {busy[1]} busy)" if busy is not None else "")


def _last_error(params: Mapping[str, Any]) -> str:
    return f"; last error: {params['error']}" if params["error"] else ""


def _ready(params: Mapping[str, Any]) -> str:
    line = f"{'its group and priority' if params['group'] else 'its priority'} in the queue {params['queue']!r}"
    free, rank, error = _free(params), params["rank"], _last_error(params)
    if rank:
        return f"{free} behind {rank} other job{'' if rank == 1 else 's'} of {line}{error}"
    return f"is the next of {line} and {free}{error}"


def _delayed(params: Mapping[str, Any]) -> str:
    until = f" until {_moment(params['at'])}" if params["at"] is not None else ""
    reason = f", because of the last time: {params['reason']}" if params["reason"] is not None else ""
    return f"was released and waits{until}{reason}"


def _limited(params: Mapping[str, Any]) -> str:
    most = f" of {params['concurrency']}" if params["concurrency"] is not None else ""
    holders = _names(params)
    return f"waits for the limit{most} of {_scope(params)}" + (f", which is used up by {holders}" if holders else "")


def _rate_limited(params: Mapping[str, Any]) -> str:
    rate = f" of {params['rate']:g} a second" if params["rate"] is not None else ""
    return f"waits for the rate{rate} of {_scope(params)}; its next turn is at {_moment(params['at'])}"


def _scope(params: Mapping[str, Any]) -> str:
    words = {Scope.QUEUE: "the queue", Scope.ACTION: "the action", Scope.KEY: "the limit key"}
    return f"{words[params['scope']]} {params['name']!r}" if params["scope"] in words else "everything"


def _names(params: Mapping[str, Any]) -> str:
    names = [_name(one) for one in params["holders"]]
    if params["more"]:
        names.append(f"{params['more']} more")
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""


def _name(holder: int | UUID | None) -> str:
    if holder is None:
        return "a job of another release"
    return f"job {holder}" if isinstance(holder, int) else f"the direct job {holder}"


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


_TEXTS: dict[Code, Callable[[Mapping[str, Any]], str]] = {
    Code.DONE: lambda p: f"does not wait: it was done{_ended(p)}",
    Code.FAILED: lambda p: (
        f"does not wait: it failed for good{_ended(p)}, and its last error was: {p['error'] or 'not told'}"
    ),
    Code.CANCELLED: _cancelled,
    Code.CANCELLING: lambda p: "is being cancelled: a person asked for it, and its worker has not carried it out yet",
    Code.EXPIRING: lambda p: f"was to be started by {_moment(p['at'])} and was not: it is about to be cancelled",
    Code.RUNNING: lambda p: f"runs on {p['worker']} since {_moment(p['at'])}",
    Code.HELD: lambda p: "runs, or its session in PostgreSQL has not ended: it holds the row or the key",
    Code.RETRYING: _retrying,
    Code.SNOOZED: _snoozed,
    Code.SCHEDULED: lambda p: f"is scheduled for {_moment(p['at'])}",
    Code.PAUSED: _paused,
    Code.BEHIND_JOB: lambda p: (
        f"waits behind job {p['id']} ({p['action']}), which has the same key {p['key']!r} and comes first"
    ),
    Code.SUSPECT: lambda p: "waits until a worker can run it alone, because its worker died repeatedly while it ran",
    Code.NO_BROKER: lambda p: "is ready, but Redis does not answer: a worker takes it from PostgreSQL within seconds",
    Code.UNSERVED: lambda p: f"waits because no worker that is alive serves the queue {p['queue']!r}",
    Code.LEASED: lambda p: f"is with the worker {p['worker']}, which runs it or is about to",
    Code.LIMITED: _limited,
    Code.RATE_LIMITED: _rate_limited,
    Code.LIMIT_ZERO: lambda p: f"waits because the limit of {_scope(p)} is 0: nothing of it may start",
    Code.UNPAUSING: lambda p: (
        f"is set aside because its {p['scope']} was paused; it comes back by itself within seconds"
    ),
    Code.UNROUTED: lambda p: f"waits until a worker is started that knows the action {p['action']!r}",
    Code.BEHIND_KEY: lambda p: f"waits behind {_names(p) or 'another job'} with the same key {p['key']!r}",
    Code.READY: _ready,
    Code.DUE: lambda p: f"{_free(p)}{_last_error(p)}",
    Code.DELAYED: _delayed,
    Code.UNPUBLISHED: lambda p: "is pending and not published yet; the reconciler publishes it within seconds",
    Code.LOST: lambda p: "was lost by Redis or ends this moment; enqueue it again with its id",
}
