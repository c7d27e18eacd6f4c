"""Format log lines as text, or as JSON objects whose ``action`` names the event."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

from sidestream.redaction import printable, redact, redact_text

JOBS = "sidestream.jobs"
"""Name of the logger that writes a line for each attempt at a job."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TEXT_HEAD = len("2026-11-30 12:00:00,000 WARNING ")
_encode = json.JSONEncoder(default=str, ensure_ascii=False).encode
_job: tuple[object, object] = (None, None)


class JsonLines(logging.Formatter):
    """Format a record as a line of JSON, with ``at`` in UTC and its extra fields.

    Values that look like secrets are redacted.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(
            {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
        )
        if record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return _encode(redact(line))


class TextLines(logging.Formatter):
    """Format a record as a line of text that names the job whose code wrote it.

    Values that look like secrets are redacted, and control characters are removed.
    """

    _second: tuple[int, str] = (0, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return local time with milliseconds, as :class:`logging.Formatter` does."""
        second = int(record.created)
        if self._second[0] != second:  # cached: a worker may write thousands of lines per second
            self._second = (second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second)))
        return f"{self._second[1]},{int(record.msecs):03d}"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = printable(redact_text(super().format(record)))
        job = getattr(record, "job_id", None)
        if job is None or record.name == JOBS:
            return line
        return f"{line[:_TEXT_HEAD]}[job {job} {getattr(record, 'job_action', '')}] {line[_TEXT_HEAD:]}"


def set_up_logging(level: str, style: Literal["text", "json"], *, quiet_jobs: bool = False) -> None:
    """Send log lines of ``level`` (debug, info, warning, error) and above to stderr.

    ``quiet_jobs`` drops the lines about the end of a job or an attempt.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if quiet_jobs:
        logging.getLogger(JOBS).setLevel(logging.CRITICAL + 1)


class JobFilter(logging.Filter):
    """Add ``job_id`` and ``job_action`` of the running job (or None) to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, and keep attributes that it already has."""
        for name, value in zip(("job_id", "job_action"), _job, strict=True):
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def mark_records() -> None:
    """Add the running job to the records of every handler of the root logger."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(JobFilter())


def set_job(job_id: int | str | None, action: str | None) -> None:
    """Set the job that this process runs, for all its threads; a child runs one job at a time."""
    global _job
    _job = (job_id, action)


def shown_url(url: str) -> str:
    """Return ``url`` without user, password and parameters, which may be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def shown_database(url: str) -> str:
    """Return the server and name of a database from its URL, without secrets."""
    if "://" in url:
        return shown_url(url)
    words = dict(re.findall(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", url))
    server = ":".join(word for word in (words.get("host", ""), words.get("port", "")) if word)
    return f"postgresql://{server}/{words.get('dbname', '')}"
