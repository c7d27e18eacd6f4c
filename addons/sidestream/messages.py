"""What people read of errors, reasons and durations, in their own language."""

import re
from datetime import timedelta

from babel.dates import format_timedelta

from odoo.tools.misc import babel_locale_parse, get_lang

EXCEPTION = re.compile(r"[A-Z][a-z0-9]*[A-Z][A-Za-z0-9]*")
"""What an exception's name looks like (UserError, OSError). "Address: ..." is text for the user."""


def error_message(error):
    """Return an error as the user's own dialog would have shown it, without the exception's name."""
    kind, colon, text = (error or "").partition(": ")
    return text if colon and EXCEPTION.fullmatch(kind) else kind + colon + text


def reason_message(env, reason):
    """Return why a job waits, why a worker handed it back, or why it was cancelled."""
    code, colon, rest = (reason or "").partition(":")
    messages = {
        "locked": lambda: env._("Its row is locked: somebody edits it, or it runs elsewhere"),
        "blocked": lambda: env._("An earlier job with the same ordering key must end first"),
        "limited": lambda: env._("Its concurrency or rate limit is reached"),
        "conflict": lambda: env._("Other users changed the same records at the same time; it is retried"),
        "stopping": lambda: env._("Its worker restarts"),
        "paused": lambda: env._("Waits until modules are installed, upgraded or removed"),
        "unrouted": lambda: env._("No running worker knows its action: install its module, or restart the workers"),
        "suspect": lambda: env._("It runs alone next time, because its worker died"),
        "lost": lambda: env._("The database did not answer; it is retried"),
        "expired": lambda: env._("It expired before it could start"),
    }
    if code in messages and (colon or not rest):
        return messages[code]()
    first, _, number = (reason or "").rpartition(" ")
    if first == "duplicate of":
        return env._("It duplicates job %s", number)
    if first == "replaced by":
        return env._("Replaced by job %s", number)
    return reason or False


def format_span(env, span):
    """Return a duration, such as "5 min"."""
    locale = babel_locale_parse(get_lang(env).code)
    return format_timedelta(max(span, timedelta()), threshold=1, format="short", locale=locale)
