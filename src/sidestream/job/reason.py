"""Name the reasons why a job is released or ended: codes with parameters.

The column ``reason`` of a job, and the ``detail`` of an attempt that did not fail, hold one as text: the code alone
(``locked``), or the code, a bar and its parameters as a JSON object (``replaced|{"by": 8}``). Whoever shows it calls
:meth:`Reason.parse` and renders it in the reader's language; ``str(reason)`` is the English text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ReasonCode(StrEnum):
    """What the engine says about a job; the comments name the parameters."""

    # -- of a release
    LOCKED = "locked"  # another session holds the row: it runs elsewhere, or a form edits it
    BLOCKED = "blocked"  # a pending job with the same key and a smaller id comes first; by (its id)
    NOT_DUE = "not_due"  # its row says later
    UNROUTED = "unrouted"  # no worker here knows the action
    UNREADABLE = "unreadable"  # written by another release; error
    FOREIGN = "foreign"  # it belongs to another database, or its database is a copy; error, where it says more
    NO_DATABASE = "no_database"  # this worker has no database
    UPGRADING = "upgrading"  # modules of the application are being installed, upgraded or removed
    CONFLICT = "conflict"  # conflicts with other transactions outlasted the tries
    SUSPECT = "suspect"  # its worker died repeatedly: it has to run alone
    STOPPING = "stopping"  # the worker stops, or replaces its child
    LOST = "lost"  # the database or the lease went away; error
    SESSION_LOST = "session_lost"  # the PostgreSQL session ended after the row was acquired; sqlstate, error
    SNOOZED = "snoozed"  # the action asked for it; seconds, message
    KILLED = "killed"  # its process was killed for another reason than the job; by (a KillReason)
    UNREPORTED = "unreported"  # its process ended before it reported how the job ended; how
    UNACQUIRED = "unacquired"  # its process ended before the row was acquired
    UNSTARTED = "unstarted"  # it was returned before it started
    RELEASED = "released"  # nothing else is known
    # -- of a cancelled job
    EXPIRED = "expired"  # expires_at (UTC)
    REPLACED = "replaced"  # by (the newer job's id)
    DUPLICATE = "duplicate"  # of (the earlier job's id)
    DISCARDED = "discarded"  # by (a person's name), where it is known
    NEUTRALIZED = "neutralized"  # its database is a neutralized copy
    # -- of an attempt row
    ALONE = "alone"  # it started, with no other job on this worker; max_attempts (of its action's policy)
    RUNNING = "running"  # it had started before this was written; seconds
    WORKER_DIED = "worker_died"  # the worker died while the job ran there
    # -- of whoever writes rows without this module
    TEXT = "text"  # text


_ENGLISH = {
    ReasonCode.LOCKED: "another session holds its row: it runs elsewhere, or a person edits it",
    ReasonCode.BLOCKED: "an earlier job with the same key comes first",
    ReasonCode.NOT_DUE: "it is not due yet",
    ReasonCode.UNROUTED: "no worker here knows its action",
    ReasonCode.UNREADABLE: "this release cannot read it: {error}",
    ReasonCode.FOREIGN: "{error}",
    ReasonCode.NO_DATABASE: "this worker has no database",
    ReasonCode.UPGRADING: "modules are being installed, upgraded or removed",
    ReasonCode.CONFLICT: "it conflicted with other transactions repeatedly",
    ReasonCode.SUSPECT: "its worker died repeatedly while it ran, so it has to run alone",
    ReasonCode.STOPPING: "its worker stops or replaces a process",
    ReasonCode.LOST: "{error}",
    ReasonCode.SESSION_LOST: "its PostgreSQL session ended while it ran: {error}",
    ReasonCode.SNOOZED: "snoozed for {seconds:g} s: {message}",
    ReasonCode.KILLED: "its process was killed: {by}",
    ReasonCode.UNREPORTED: "{how} before it reported how the job ended",
    ReasonCode.UNACQUIRED: "its process ended before its row was acquired",
    ReasonCode.UNSTARTED: "it was returned before it started",
    ReasonCode.RELEASED: "it was released",
    ReasonCode.EXPIRED: "it expired at {expires_at} UTC",
    ReasonCode.REPLACED: "replaced by job {by}",
    ReasonCode.DUPLICATE: "duplicate of job {of}",
    ReasonCode.DISCARDED: "discarded by {by}",
    ReasonCode.NEUTRALIZED: "its database is a neutralized copy",
    ReasonCode.ALONE: "alone",
    ReasonCode.RUNNING: "it had started {seconds:.1f} s earlier",
    ReasonCode.WORKER_DIED: "its worker died while it ran there",
    ReasonCode.TEXT: "{text}",
}
_ENGLISH_BARE = {ReasonCode.FOREIGN: "it belongs to another database", ReasonCode.DISCARDED: "discarded"}
"""Of codes whose parameters may be missing."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason."""

    code: ReasonCode
    params: Mapping[str, str | int | float] = field(default_factory=dict)

    @classmethod
    def parse(cls, stored: str) -> Reason:
        """Return the reason that :meth:`stored` wrote; any other text becomes one of code TEXT."""
        code, bar, params = stored.partition("|")
        try:
            found = cls(ReasonCode(code), json.loads(params) if bar else {})
            str(found)
        except (ValueError, KeyError, IndexError, TypeError):
            return cls(ReasonCode.TEXT, {"text": stored})
        return found

    def stored(self) -> str:
        """Return the text that a row keeps."""
        return f"{self.code}|{json.dumps(self.params, ensure_ascii=False)}" if self.params else self.code.value

    def __str__(self) -> str:
        """Return the reason in English, without a full stop."""
        bare = None if self.params else _ENGLISH_BARE.get(self.code)
        return _ENGLISH[self.code].format(**self.params) if bare is None else bare
