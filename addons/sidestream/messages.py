"""Render errors, reasons, diagnoses and durations in the reader's language."""

import re
from datetime import UTC, timedelta

from babel.dates import format_timedelta
from babel.numbers import format_decimal

from sidestream import redact_text
from sidestream.job.reason import Reason, ReasonCode

from odoo.tools.i18n import format_list
from odoo.tools.misc import babel_locale_parse, format_datetime, get_lang

EXCEPTION = re.compile(r"[A-Z][a-z0-9]*[A-Z][A-Za-z0-9]*")
"""What an exception's name looks like (UserError, OSError). "Address: ..." is text for the user."""


def error_message(error):
    """Return an error as Odoo's dialog would show it, without the exception's name."""
    kind, colon, text = (error or "").partition(": ")
    return text if colon and EXCEPTION.fullmatch(kind) else kind + colon + text


def reason_message(env, stored):
    """Return the stored reason why a job waits, was released or was cancelled, as a sentence."""
    if not stored:
        return False
    reason = Reason.parse(stored)
    messages = {
        ReasonCode.LOCKED: lambda: env._("Its row is locked: a user is editing it, or it runs elsewhere"),
        ReasonCode.BLOCKED: lambda: env._("An earlier job with the same ordering key must end first"),
        ReasonCode.CONFLICT: lambda: env._("Other users changed the same records at the same time; it is retried"),
        ReasonCode.STOPPING: lambda: env._("Its worker restarts"),
        ReasonCode.UPGRADING: lambda: env._("Waits until modules are installed, upgraded or removed"),
        ReasonCode.UNROUTED: lambda: status_message(env, "unrouted"),
        ReasonCode.SUSPECT: lambda: env._("It runs alone next time, because its worker died"),
        ReasonCode.LOST: lambda: env._("The database did not answer; it is retried"),
        ReasonCode.SESSION_LOST: lambda: env._("The database did not answer; it is retried"),
        ReasonCode.SNOOZED: lambda: reason.params["message"],
        ReasonCode.EXPIRED: lambda: env._("It expired before it could start"),
        ReasonCode.DUPLICATE: lambda: env._("It duplicates job %s", reason.params["of"]),
        ReasonCode.REPLACED: lambda: env._("Replaced by job %s", reason.params["by"]),
        ReasonCode.NEUTRALIZED: lambda: env._("Cancelled in a neutralized copy of the database"),
        ReasonCode.ALONE: lambda: env._("Runs alone, because its last worker died"),
        ReasonCode.RUNNING: lambda: env._("It had started %s s earlier", reason.params["seconds"]),
        ReasonCode.WORKER_DIED: lambda: env._("Its worker died while it ran"),
    }
    return messages[reason.code]() if reason.code in messages else str(reason)


def status_message(env, status):
    """Return what a job with this status waits for."""
    return {
        "blocked": lambda: env._("An earlier job with the same ordering key must end first"),
        "limited": lambda: env._("Its concurrency or rate limit is reached"),
        "unrouted": lambda: env._("No running worker knows its action: install its module, or restart the workers"),
    }[status]()


def diagnosis_message(env, diagnosis):
    """Return why a job waits or how it ended, from its ``sidestream.admin.diagnosis.Diagnosis``."""
    params = dict(diagnosis.params)
    if params.get("at"):
        moment = params["at"].astimezone(UTC).replace(tzinfo=None)
        params["at"] = format_datetime(env, moment, tz=env.context.get("tz"))
    parts = [DIAGNOSES[diagnosis.code](env, params)]
    if params.get("concurrency") is not None:
        parts.append(env._("At most %s jobs at the same time", params["concurrency"]))
    if params.get("rate") is not None:
        parts.append(env._("At most %s starts per second", format_decimal(params["rate"], locale=_locale(env))))
    if params.get("holders"):
        holders = [_holder_name(env, holder) for holder in params["holders"]]
        holders += [env._("%s more", params["more"])] if params["more"] else []
        parts.append(env._("Held by %s", format_list(env, holders)))
    if params.get("busy"):
        parts.append(env._("Busy child processes: %(busy)s of %(all)s", busy=params["busy"][0], all=params["busy"][1]))
    if params.get("by"):
        parts.append(env._("Set by %s", params["by"]))
    if params.get("note"):
        parts.append(env._("Note: %s", params["note"]))
    if params.get("reason"):
        parts.append(redact_text(reason_message(env, params["reason"].stored())))
    if params.get("error"):
        parts.append(env._("Last error: %s", error_message(params["error"])))
    return ". ".join(parts)


DIAGNOSES = {
    "done": lambda env, params: env._("Done on %(at)s", **params),
    "failed": lambda env, params: env._("Failed on %(at)s", **params),
    "cancelled": lambda env, params: env._("Cancelled on %(at)s", **params),
    "cancelling": lambda env, params: env._("Its cancellation was requested. A worker carries it out within seconds"),
    "expiring": lambda env, params: env._("It had to start by %(at)s, so it is about to be cancelled", **params),
    "running": lambda env, params: env._("Running on worker %(worker)s since %(at)s", **params),
    "held": lambda env, params: env._("Running, or its database session has not ended"),
    "retrying": lambda env, params: env._("Retries on %(at)s. Failed attempts: %(failures)s", **params),
    "snoozed": lambda env, params: env._("It asked to run again on %(at)s", **params),
    "scheduled": lambda env, params: env._("Scheduled for %(at)s", **params),
    "paused": lambda env, params: _pause(env, params),
    "behind_job": lambda env, params: env._(
        'Job %(id)s (%(action)s) has the same ordering key "%(key)s" and must end first', **params
    ),
    "suspect": lambda env, params: env._(
        "Its worker died repeatedly while it ran, so it waits until a worker can run it alone"
    ),
    "no_broker": lambda env, params: env._("It is ready. Redis does not answer, so a worker finds it within seconds"),
    "unserved": lambda env, params: env._('No running worker serves the queue "%(queue)s"', **params),
    "leased": lambda env, params: env._("Worker %(worker)s runs it or is about to", **params),
    "limited": lambda env, params: env._("The concurrency limit is reached: %s", _limit(env, params)),
    "rate_limited": lambda env, params: env._(
        "The rate limit is reached until %(at)s: %(limit)s", at=params["at"], limit=_limit(env, params)
    ),
    "limit_zero": lambda env, params: env._("The limit is 0, so nothing starts: %s", _limit(env, params)),
    "unpausing": lambda env, params: env._("A pause of its queue, action or group ended. It continues within seconds"),
    "unrouted": lambda env, params: status_message(env, "unrouted"),
    "behind_key": lambda env, params: env._(
        'An earlier job with the same ordering key "%(key)s" must end first', **params
    ),
    "ready": lambda env, params: env._(
        'Waits for a free worker. Jobs of its priority before it in the queue "%(queue)s": %(rank)s', **params
    ),
    "due": lambda env, params: env._("Waits for a free worker"),
    "delayed": lambda env, params: (
        env._("Its worker released it until %(at)s", **params) if params["at"] else env._("Its worker released it")
    ),
    "unpublished": lambda env, params: env._("It is not published to Redis yet. This happens within seconds"),
    "lost": lambda env, params: env._("Redis lost it, or it ends this moment"),
}
"""The main text of each ``sidestream.admin.diagnosis.Code``; other parameters follow in texts of their own."""


def _pause(env, params):
    if params["queue"] is not None:
        return env._('The queue "%(queue)s" is paused since %(at)s', **params)
    if params["action"] is None:
        return env._('The group "%(group)s" is paused since %(at)s', **params)
    if params["group"] is None:
        return env._('The action "%(action)s" is paused since %(at)s', **params)
    return env._('The action "%(action)s" of the group "%(group)s" is paused since %(at)s', **params)


def _limit(env, params):
    return {
        "queue": lambda: env._('queue "%s"', params["name"]),
        "action": lambda: env._('action "%s"', params["name"]),
        "key": lambda: env._('limit key "%s"', params["name"]),
        "global": lambda: env._("all jobs"),
    }[params["scope"]]()


def _holder_name(env, holder):
    if holder is None:
        return env._("a job of another release")
    return env._("job %s", holder) if isinstance(holder, int) else env._("direct job %s", holder)


def format_span(env, span):
    """Return a duration, such as "5 min"."""
    return format_timedelta(max(span, timedelta()), threshold=1, format="short", locale=_locale(env))


def _locale(env):
    return babel_locale_parse(get_lang(env).code)
