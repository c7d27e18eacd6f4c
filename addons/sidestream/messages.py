"""What people read of errors, reasons and durations, in their own language."""

import re
from datetime import timedelta

from babel.dates import format_timedelta

from sidestream.job.reason import Reason, ReasonCode

from odoo.tools.misc import babel_locale_parse, get_lang

EXCEPTION = re.compile(r"[A-Z][a-z0-9]*[A-Z][A-Za-z0-9]*")
"""What an exception's name looks like (UserError, OSError). "Address: ..." is text for the user."""


def error_message(error):
    """Return an error as the user's own dialog would have shown it, without the exception's name."""
    kind, colon, text = (error or "").partition(": ")
    return text if colon and EXCEPTION.fullmatch(kind) else kind + colon + text


def reason_message(env, stored):
    """Return why a job waits, why its worker released it, or why it was cancelled, from its stored reason."""
    if not stored:
        return False
    reason = Reason.parse(stored)
    messages = {
        ReasonCode.LOCKED: lambda: env._("Its row is locked: somebody edits it, or it runs elsewhere"),
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
        ReasonCode.RUNNING: lambda: env._("It had run for %s s", reason.params["seconds"]),
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


def format_span(env, span):
    """Return a duration, such as "5 min"."""
    locale = babel_locale_parse(get_lang(env).code)
    return format_timedelta(max(span, timedelta()), threshold=1, format="short", locale=locale)
