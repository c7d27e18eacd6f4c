"""Report that the user's own code cannot be loaded, with the user's traceback."""

from __future__ import annotations

import traceback
from types import TracebackType

from sidestream.errors import ApplicationError

_PACKAGE = __name__.partition(".")[0]
_IMPORT_MACHINERY = ("importlib", "_frozen_importlib")


def application_error(what: str, error: BaseException) -> ApplicationError:
    """Return the error to raise from ``error``, which loading ``what`` (a noun phrase) raised.

    Cuts the traceback of ``error`` so that it begins with the user's code.
    """
    first = error.__traceback__
    while first is not None and first.tb_next is not None and _is_ours(first):
        first = first.tb_next
    error.__traceback__ = first
    message = " ".join(traceback.format_exception_only(error)[-1].split())
    return ApplicationError(
        f"{what} cannot be loaded, which is a fault in its own code and not in Sidestream: {message}{_where(error)}"
    )


def is_raised_in(package: str, error: BaseException) -> bool:
    """Return whether the code of ``package`` raised the error, or has a syntax error."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    names = (str(frame.f_globals.get("__name__", "")) for frame in frames)
    return isinstance(error, SyntaxError) or any(name.startswith(f"{package}.") for name in names)


def _where(error: BaseException) -> str:
    """Return the place in the user's code that raised ``error``, or that has a syntax error."""
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
    """Return whether a frame belongs to Sidestream or to Python's import machinery."""
    name = str(place.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in (_PACKAGE, *_IMPORT_MACHINERY)
