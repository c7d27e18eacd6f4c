"""What a user is told when his own code cannot be loaded: his traceback, and whose fault it is."""

from __future__ import annotations

import traceback
from types import TracebackType

from sidestream.errors import ApplicationError

_PACKAGE = __name__.partition(".")[0]
_ON_THE_WAY = ("importlib", "_frozen_importlib")


def application_error(what: str, error: BaseException) -> ApplicationError:
    """Return what to raise, from ``error``, when loading ``what`` (a noun phrase) raised it.

    The traceback of ``error`` begins with the user's code from here on: how we came there is no help to him.
    """
    first = error.__traceback__
    while first is not None and first.tb_next is not None and _is_ours(first):
        first = first.tb_next
    error.__traceback__ = first
    said = " ".join(traceback.format_exception_only(error)[-1].split())
    return ApplicationError(
        f"{what} cannot be loaded, which is a fault in its own code and not in Sidestream: {said}{_where(error)}"
    )


def is_raised_in(package: str, error: BaseException) -> bool:
    """Whether the code of ``package`` raised the error, or cannot be read."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = (str(frame.f_globals.get("__name__", "")) for frame in frames)
    return isinstance(error, SyntaxError) or any(name.startswith(f"{package}.") for name in names)


def _where(error: BaseException) -> str:
    """Return where the user's code raised ``error``, or where it cannot be read."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})."
    found = ""
    place = error.__traceback__
    while place is not None:
        if not _is_ours(place):
            found = f" ({place.tb_frame.f_code.co_filename}, line {place.tb_lineno})"
        place = place.tb_next
    return f"{found}."


def _is_ours(place: TracebackType) -> bool:
    """Whether a frame is Sidestream's, or of the import on the way from there."""
    name = str(place.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in (_PACKAGE, *_ON_THE_WAY)
